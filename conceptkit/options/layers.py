"""Options of ``layers``."""

from __future__ import annotations

from conceptkit.options.base import Command, declare, option


@declare
class Layers(Command):
    """List the layers of a network, with the shape of their output and their other names; needs no weights."""

    name = "layers"
    example = "layers --model inception_v3"
    runner = "conceptkit.commands.extract:layers_of"
    caches = False

    model: str | None = None
    """A timm network (also hf-hub:…), mini_inception (bundled), a checkpoint folder, or package.module:factory, your
    own function, which is run."""
    size: int | None = None
    """Side of the images, in pixels."""
    everything: bool = option(False, flag="--all")
    """List the parts of blocks too."""
