"""Checks of the installation, and what each missing package disables."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from packaging.requirements import InvalidRequirement, Requirement

from conceptkit.images.decoding import one_line
from conceptkit.jobs import usable_processors
from conceptkit.options.base import Notify, Progress
from conceptkit.options.study import Doctor
from conceptkit.synthetic import cache_folder

GOOD, LESS, BAD = "good", "less", "bad"
"""Everything works; an optional package is missing; a required one is missing"""

DISK_GB = 5.0
"""Free space below which a warning is shown: activations of 20,000 patches at one layer take 0.2 GB"""

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: str
    """``good``, ``less`` or ``bad``"""
    found: str
    disables: str = ""
    """What does not work without it"""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Results of all checks."""

    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        """Return whether everything that is required is installed."""
        return all(finding.state != BAD for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        body = {"usable": self.is_usable, "findings": [asdict(finding) for finding in self.findings]}
        return {"schema": "conceptkit/doctor/1", **body}


def doctor(options: Doctor, *, progress: Progress | None = None, notify: Notify | None = None) -> Examination:
    """Check the installation, see :func:`examine`."""
    return examine(offline=options.offline)


def examine(*, offline: bool = False) -> Examination:
    """Check interpreter, packages, OpenSlide, CUDA, hub, disk and optional packages.

    Parameters
    ----------
    offline : do not check the hub: no network access
    """
    checks: list[Callable[[], Finding]] = [_python, _packages, _torch, _cuda, _openslide, _cache, _processors]
    checks += [] if offline else [_hub]
    checks += [_extra("dask", "distributed", "--engine dask on a cluster", "pip install 'conceptkit[dask]'")]
    checks += [_extra("tensorboard", "tensorboard", "--log tensorboard", "pip install 'conceptkit[tensorboard]'")]
    checks += [_extra("torchjd", "torchjd", "--weighting by aggregated gradients", "pip install 'conceptkit[jd]'")]
    return Examination(findings=tuple(_safely(check) for check in checks))


def _safely(check: Callable[[], Finding]) -> Finding:
    """Return the result of a check; one that raises is a finding too."""
    try:
        return check()
    except Exception as error:  # a broken library may raise anything
        return Finding(check.__name__.strip("_"), BAD, f"{type(error).__name__}: {one_line(error)}")


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", GOOD, found)


def _packages() -> Finding:
    """Compare the installed packages with those that conceptkit needs."""
    try:
        stated = importlib.metadata.requires("conceptkit") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", LESS, "conceptkit runs from its source, not installed")
    wrong = []
    for text in stated:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needs {requirement.specifier}")
    if wrong:
        return Finding("packages", BAD, "; ".join(wrong), "what uses them", "pip install --upgrade conceptkit")
    version = importlib.metadata.version("conceptkit")
    return Finding("packages", GOOD, f"conceptkit {version} and everything it needs")


def _torch() -> Finding:
    import torch

    try:
        import torchvision
    except Exception as error:  # built for another torch, it breaks while it is imported
        return Finding(
            "torch",
            BAD,
            f"torch {torch.__version__}, torchvision broken: {one_line(error)}",
            "every network: timm imports torchvision",
            "install torch and torchvision together, from one index",
        )
    return Finding("torch", GOOD, f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info(0)
        memory = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free on the first"
        return Finding("CUDA", GOOD, f"{', '.join(names)}; {memory}")
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        return Finding("CUDA", GOOD, "Apple's MPS instead")
    built = torch.version.cuda
    found = f"torch is built for CUDA {built}, no device answers" if built else "torch is built without CUDA"
    return Finding("CUDA", LESS, found, "nothing; large networks are slow on the processor")


def _openslide() -> Finding:
    try:
        library = str(importlib.import_module("openslide").__library_version__)
    except Exception as error:  # the C library may be missing or too old
        disables = "whole slides: tile, and patch tables with a slide column"
        return Finding("OpenSlide", LESS, one_line(error), disables, "pip install openslide-bin openslide-python")
    return Finding("OpenSlide", GOOD, f"library {library}")


def _cache() -> Finding:
    folder = cache_folder()
    above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(above).free / 1e9
    found = f"{folder}, {free:.1f} GB free"
    if not os.access(above, os.W_OK):
        disables = "the embedded study, and keeping activations"
        remedy = "set CONCEPTKIT_CACHE to a folder that you can write to"
        return Finding("cache folder", BAD, f"{found}, not writable", disables, remedy)
    if free < DISK_GB:
        remedy = "set CONCEPTKIT_CACHE to a folder on a larger disk"
        return Finding("cache folder", LESS, found, "large activation stores", remedy)
    return Finding("cache folder", GOOD, found)


def _processors() -> Finding:
    threads = os.environ.get("OMP_NUM_THREADS")
    stated = f", OMP_NUM_THREADS={threads}" if threads else ""
    return Finding("processors", GOOD, f"{usable_processors()} usable{stated}")


def _hub() -> Finding:
    endpoint = os.environ.get("HF_ENDPOINT", HUB)
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=5):  # https, or what the user named
            pass
    except HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        kept = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")).is_dir()
        found = f"{endpoint} does not answer ({type(error).__name__})"
        disables = "downloading weights (--weights imagenet, hf-hub:…)"
        disables += "; what lies in the hub's cache still opens" if kept else ""
        remedy = "name a file with --weights, or a network's folder with --model local-dir:…"
        return Finding("hub", LESS, found, disables, remedy)
    return Finding("hub", GOOD, f"{endpoint} answers")


def _extra(name: str, module: str, disables: str, remedy: str) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            return Finding(name, GOOD, importlib.metadata.version(module))
        except importlib.metadata.PackageNotFoundError:
            return Finding(name, LESS, "not installed", disables, remedy)

    check.__name__ = name
    return check
