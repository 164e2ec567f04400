"""Whether the installation can do what conceptkit offers, and what each missing piece would disable."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conceptkit.jobs import usable_processors
from conceptkit.synthetic import cache_folder

GOOD, LESS, BAD = "good", "less", "bad"
"""All works; something optional is missing; something that every user needs is missing"""

DISK_GB = 5.0
"""Below so much free space a report of it is due: activations of 20,000 patches at one layer take 0.2 GB"""

HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: str
    """``good``, ``less`` or ``bad``"""
    found: str
    disables: str = ""
    """What cannot be done without it"""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All that was looked at."""

    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        """Return whether nothing that every user needs is missing."""
        return all(finding.state != BAD for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        body = {"usable": self.is_usable, "findings": [asdict(finding) for finding in self.findings]}
        return {"schema": "conceptkit/doctor/1", **body}


def examine(*, offline: bool = False) -> Examination:
    """Look at interpreter, packages, OpenSlide, CUDA, hub, disk, and what is optional.

    Parameters
    ----------
    offline : leave the hub out: no network is asked for anything
    """
    checks: list[Callable[[], Finding]] = [_python, _packages, _torch, _cuda, _openslide, _cache, _processors]
    checks += [] if offline else [_hub]
    checks += [_extra("dask", "distributed", "--engine dask on a cluster", "pip install 'conceptkit[dask]'")]
    checks += [_extra("tensorboard", "tensorboard", "--log tensorboard", "pip install 'conceptkit[tensorboard]'")]
    checks += [_extra("torchjd", "torchjd", "--weighting by aggregated gradients", "pip install 'conceptkit[jd]'")]
    return Examination(findings=tuple(_safely(check) for check in checks))


def _safely(check: Callable[[], Finding]) -> Finding:
    """Return what a check finds; one that breaks is a finding too."""
    try:
        return check()
    except Exception as error:  # a broken library may raise anything at all
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Finding(name=check.__name__.strip("_"), state=BAD, found=f"{type(error).__name__}: {said}")


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = sys.version_info >= (3, 11)
    return Finding(
        name="Python",
        state=GOOD if good else BAD,
        found=found,
        disables="" if good else "everything",
        remedy="" if good else "install Python 3.11 or later",
    )


def _packages() -> Finding:
    """Compare what is installed with what conceptkit asks for."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        stated = importlib.metadata.requires("conceptkit") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding(name="packages", state=LESS, found="conceptkit runs from its source, not installed")
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
    ours = importlib.metadata.version("conceptkit")
    if wrong:
        remedy = "pip install --upgrade conceptkit"
        return Finding(name="packages", state=BAD, found="; ".join(wrong), disables="what uses them", remedy=remedy)
    return Finding(name="packages", state=GOOD, found=f"conceptkit {ours} and all that it needs")


def _torch() -> Finding:
    import torch

    try:
        import torchvision
    except Exception as error:  # built for another torch, it breaks while it is imported
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Finding(
            name="torch",
            state=BAD,
            found=f"torch {torch.__version__}, torchvision broken: {said}",
            disables="every network: timm imports torchvision",
            remedy="install torch and torchvision together, from one index",
        )
    return Finding(name="torch", state=GOOD, found=f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info(0)
        memory = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free on the first"
        return Finding(name="CUDA", state=GOOD, found=f"{', '.join(names)}; {memory}")
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        return Finding(name="CUDA", state=GOOD, found="Apple's MPS instead")
    built = torch.version.cuda
    found = f"torch is built for CUDA {built}, no device answers" if built else "torch is built without CUDA"
    return Finding(name="CUDA", state=LESS, found=found, disables="nothing; large networks are slow on the processor")


def _openslide() -> Finding:
    try:
        openslide = importlib.import_module("openslide")
        library = str(openslide.__library_version__)
    except Exception as error:  # the C library may be missing or too old
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Finding(
            name="OpenSlide",
            state=LESS,
            found=said,
            disables="whole slides: tile, and patch tables with a slide column",
            remedy="pip install openslide-bin openslide-python",
        )
    return Finding(name="OpenSlide", state=GOOD, found=f"library {library}")


def _cache() -> Finding:
    folder = cache_folder()
    above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(above).free / 1e9
    named = f"{folder}, {free:.1f} GB free"
    if not os.access(above, os.W_OK):
        return Finding(
            name="cache folder",
            state=BAD,
            found=f"{named}, not writable",
            disables="the embedded study, and keeping activations",
            remedy="set CONCEPTKIT_CACHE to a folder of yours",
        )
    if free < DISK_GB:
        return Finding(
            name="cache folder",
            state=LESS,
            found=named,
            disables="large activation stores",
            remedy="set CONCEPTKIT_CACHE to a larger disk",
        )
    return Finding(name="cache folder", state=GOOD, found=named)


def _processors() -> Finding:
    usable = usable_processors()
    threads = os.environ.get("OMP_NUM_THREADS")
    return Finding(
        name="processors", state=GOOD, found=f"{usable} usable" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    )


def _hub() -> Finding:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    endpoint = os.environ.get("HF_ENDPOINT", HUB)
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=5):  # https, or what the user named
            pass
    except HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        kept = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")).is_dir()
        return Finding(
            name="hub",
            state=LESS,
            found=f"{endpoint} does not answer ({type(error).__name__})",
            disables="downloading weights (--weights imagenet, hf-hub:…)"
            + ("; what lies in the hub's cache still opens" if kept else ""),
            remedy="name a file with --weights, or a network's folder with --model local-dir:…",
        )
    return Finding(name="hub", state=GOOD, found=f"{endpoint} answers")


def _extra(name: str, module: str, disables: str, remedy: str) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            version = importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            return Finding(name=name, state=LESS, found="not installed", disables=disables, remedy=remedy)
        return Finding(name=name, state=GOOD, found=version)

    check.__name__ = name
    return check
