"""What can be asked of each command: frozen dataclasses, from which command line, docs and settings derive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conceptkit.errors import check_choice
from conceptkit.options.base import Command, described
from conceptkit.registry import load

COMMANDS: Mapping[str, str] = {
    "probe": "conceptkit.options.probe:Probe",
    "guide": "conceptkit.options.guide:Guide",
    "grid": "conceptkit.options.grid:Grid",
    "bags": "conceptkit.options.bags:Bags",
    "predictivity": "conceptkit.options.predictivity:Predictivity",
    "attribute": "conceptkit.options.attribute:Attribute",
    "audit": "conceptkit.options.audit:Audit",
}
"""Name of a command → ``module:class``, in the order of the help"""


def from_settings(settings: Mapping[str, Any]) -> Command:
    """Return the command that made a record, from the record's settings.

    Files are named in settings as they were given; run the command where they can be found. Settings that are no
    options, such as the digest of the weights, are left out.

    Raises
    ------
    InputError
        when the settings name no command, or hold a value that its options do not allow
    """
    name = str(settings.get("command"))
    check_choice("command", name, COMMANDS)
    command: type[Command] = load(COMMANDS[name])
    names = [option.name for option in described(command)]
    return command(**{name: settings[name] for name in names if name in settings})
