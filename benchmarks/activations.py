"""How fast activations are read, as ratios of what is measured in turn within one run.

Run ``python benchmarks/activations.py``; ``--images 64 --rounds 1`` shortens it, ``--only mixed10,rss`` picks figures.
Weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import conceptkit as ck
from conceptkit.features.activations import Job, fill, store_rows
from conceptkit.features.stores import ActivationStore
from conceptkit.models.backbones import Backbone, build
from conceptkit.models.inference import Reader, provenance
from conceptkit.tables.patches import PatchTable, load_table

SIDE = 224
MODEL = "inception_v3"


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    ratios: Sequence[float]
    wanted: str
    holds: bool
    detail: str


def paint(folder: Path, n: int) -> PatchTable:
    """Write n JPEG files of smooth noise, which decode about as tissue does, and their patch table."""
    rng = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(rng.integers(60, 240, (28, 28, 3), dtype=np.uint8))
        large = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = np.clip(large + rng.integers(-12, 13, large.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05d}.jpg", quality=85)
    pd.DataFrame({"image": [f"{i:05d}.jpg" for i in range(n)]}).to_csv(folder / "table.csv", index=False)
    return load_table(folder / "table.csv")


FIGURES = ("eager10", "eager2", "pipeline", "captum10", "captum2", "linear", "rss")

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""The second counts the work of all threads, which is what tells on a machine that others use too."""


def in_turn(
    rounds: int, first: Callable[[], Any], second: Callable[[], Any], clock: Callable[[], float]
) -> tuple[list[float], float, float]:
    """Return time of ``first`` over time of ``second`` per round, and the best time of each."""
    first(), second()  # to warm up
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        pair = [(0, first), (1, second)]
        taken = [0.0, 0.0]
        for which, run in pair if number % 2 == 0 else pair[::-1]:
            start = clock()
            run()
            taken[which] = clock() - start
        times.append((taken[0], taken[1]))
    return [a / b for a, b in times], min(a for a, _ in times), min(b for _, b in times)


class Bench:
    """The network, the images, and the figures measured on them."""

    def __init__(
        self, folder: Path, images: int, batch: int, rounds: int, clock: str, device: str, autocast: str | None
    ) -> None:
        self.folder, self.batch, self.rounds, self.clock = folder, batch, rounds, CLOCKS[clock]
        self.device, self.autocast = device, autocast
        self.table = paint(folder, images)
        self.backbone: Backbone = build(MODEL, {}, seed=0)
        self.plain: Any = copy.deepcopy(self.backbone.module).to(device)
        # Once, as in one extraction: the digest of the weights takes as long whatever the number of patches.
        self.made_with = provenance(self.backbone, [], pool="gap", batch_size=batch, autocast=autocast)
        self.pixels = np.stack([self.table.pixels(i) for i in range(batch)])
        self.images = (
            self.backbone.preprocessing(self.pixels).contiguous().to(device)
        )  # NCHW, as timm's own transforms give it

    def reader(self, layer: str) -> Reader:
        how = {"batch_size": self.batch, "device": self.device, "autocast": self.autocast}
        return Reader(self.backbone, [layer], (SIDE, SIDE), **how)

    def eager(self) -> None:
        # In the precision that torch takes by itself: on a GPU its convolutions keep three digits (TF32).
        with torch.inference_mode():
            self.plain.forward_features(self.images).mean((2, 3)).cpu()

    def against_eager(self, layer: str, least: float) -> Figure:
        """Read one batch, transform included, against timm's full forward pass of tensors that are ready."""
        reader = self.reader(layer)
        ratios, theirs, ours = in_turn(self.rounds, self.eager, lambda: reader(self.pixels), self.clock)
        what = f"{layer} GAP against timm, eager fp32 NCHW, full forward"
        detail = f"{self.batch / ours:.1f} against {self.batch / theirs:.1f} images/s"
        return Figure(what, ratios, f"at least {least}", statistics.median(ratios) >= least, detail)

    def pipeline(self) -> Figure:
        """Decode, transform, compute and store the whole table, against as many bare forward passes."""
        job = self.job("mixed10", self.table)
        passes = -(-len(self.table) // self.batch)
        ready = job.reader._laid_out(self.images)

        def bare() -> None:
            for _ in range(passes):
                with job.reader._precision():
                    found = job.reader._pass(job.reader.module, ready)
            for value in found.values():
                value.cpu()  # a GPU's work is done when its result is here

        def whole() -> None:
            self.run(job)

        ratios, forward, ours = in_turn(self.rounds, bare, whole, self.clock)
        n = len(self.table)
        detail = f"{n / ours:.1f} against {passes * self.batch / forward:.1f} images/s"
        scaled = [r * n / (passes * self.batch) for r in ratios]
        what = "whole pipeline (JPEG → store) against the bare forward pass, mixed10"
        return Figure(what, scaled, "at least 0.9", statistics.median(scaled) >= 0.9, detail)

    def job(self, layer: str, table: PatchTable) -> Job:
        options = {"pool": "gap", "batch_size": self.batch, "device": self.device, "autocast": self.autocast}
        job = Job(table=table, backbone=self.backbone, layers=(layer,), options=options)
        assert job.reader.folded
        return job

    def run(self, job: Job) -> None:
        """Fill a new store with all rows of a job."""
        path = self.folder / "store.h5"
        path.unlink(missing_ok=True)
        made_with = {**self.made_with, "layers": job.reader.layers}
        rows = store_rows(job.table)
        with ActivationStore(path, provenance=made_with, rows=rows, widths=lambda: job.reader.widths) as store:
            fill([store], job.computed(np.arange(len(job.table))))

    def against_captum(self, layer: str, least: float) -> Figure:
        """The same JPEG files to the same layer: ours into a store, TCAV's into its own files."""
        from captum.concept import TCAV, Concept
        from torch.utils.data import DataLoader, Dataset

        bench = self

        class Files(Dataset):
            def __len__(self) -> int:
                return len(bench.table)

            def __getitem__(self, row: int) -> torch.Tensor:
                return bench.backbone.preprocessing(bench.table.pixels(row)[None])[0].contiguous().to(bench.device)

        own = self.backbone.layer(layer)
        job = self.job(layer, self.table)
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its classifier, which is not asked
                tcav = TCAV(self.plain, [own], save_path=place)
            concept = Concept(0, "patches", DataLoader(Files(), batch_size=self.batch))
            ratios, theirs, ours = in_turn(
                self.rounds, lambda: tcav.generate_activation([own], concept), lambda: self.run(job), self.clock
            )
        n = len(self.table)
        detail = f"{n / ours:.1f} against {n / theirs:.1f} images/s"
        what = f"{layer} against captum.concept.TCAV.generate_activation, from JPEG to disk"
        return Figure(what, ratios, f"at least {least:g}", statistics.median(ratios) >= least, detail)

    def linear(self) -> Figure:
        """Four times the patches, the network prepared beforehand."""
        quarter = self.table.select(np.arange(len(self.table) // 4 // self.batch * self.batch))
        whole = self.table.select(np.arange(4 * len(quarter)))
        few, many = self.job("mixed2", quarter), self.job("mixed2", whole)
        ratios, long, short = in_turn(self.rounds, lambda: self.run(many), lambda: self.run(few), self.clock)
        median = statistics.median(ratios)
        detail = f"{len(quarter)} patches in {short:.1f} s, {len(whole)} in {long:.1f} s"
        return Figure("time of 4 × the patches, mixed2", ratios, "3.8 to 4.2", 3.8 <= median <= 4.2, detail)

    def memory(self) -> Figure:
        """Peak resident memory of a process of its own, for a quarter of the patches and for all of them."""
        peaks = []
        quarter = len(self.table) // 4
        for n in (quarter, 4 * quarter):
            command = [sys.executable, __file__, "--peak", str(n), "--batch", str(self.batch), "--folder", self.folder]
            command += ["--threads", str(torch.get_num_threads())]
            peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        ratio = peaks[1] / peaks[0]
        detail = f"{peaks[0]:.0f} and {peaks[1]:.0f} MB"
        return Figure("peak memory of 4 × the patches", [ratio], "at most 1.05", ratio <= 1.05, detail)


def peak(folder: Path, n: int, batch: int) -> float:
    """Extract n patches and return this process' peak resident memory in MB."""
    table = load_table(folder / "table.csv").select(np.arange(n))
    backbone = build(MODEL, {}, seed=0)
    ck.extract(backbone, table, layers=["mixed2"], store=folder / f"peak{n}.h5", batch_size=batch, device="cpu")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def workplace(folder: str | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="JPEG files (default 512, at least 16 batches)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of all figures but the memory")
    parser.add_argument("--autocast", choices=("bf16", "fp16"), help="of ours; what it is held against stays as it is")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of work, on a machine in use")
    parser.add_argument("--only", default="", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    only = [name for name in given.only.split(",") if name]
    if unknown := [name for name in only if name not in FIGURES]:
        parser.error(f"only: there is no figure {unknown[0]!r}; known: {', '.join(FIGURES)}")
    torch.set_num_threads(given.threads)
    with workplace(given.folder) as folder:
        if given.peak is not None:
            print(peak(folder, given.peak, given.batch))
            return
        images = max(given.images, 16 * given.batch)
        how = given.batch, given.rounds, given.clock, given.device, given.autocast
        bench = Bench(folder, images, *how)
        figures: dict[str, Callable[[], Figure]] = {
            "eager10": lambda: bench.against_eager("mixed10", 1.6),
            "eager2": lambda: bench.against_eager("mixed2", 3.0),
            "pipeline": bench.pipeline,
            "captum10": lambda: bench.against_captum("mixed10", 3.0),
            "captum2": lambda: bench.against_captum("mixed2", 8.0),
            "linear": bench.linear,
            "rss": bench.memory,
        }
        on_gpu = torch.device(given.device).type == "cuda"
        where = torch.cuda.get_device_name(given.device) if on_gpu else f"{given.threads} threads"
        where += f", {given.autocast}" if given.autocast else ""
        chosen = [name for name in FIGURES if not only or name in only]
        grid = Table(title=f"{MODEL}, {SIDE}², batch {given.batch}, {where}, {given.clock} clock")
        for column in ("figure", "ratio (median)", "all rounds", "wanted", "", "rates"):
            grid.add_column(column)
        for name in chosen:
            figure = figures[name]()
            median, every = statistics.median(figure.ratios), " ".join(f"{r:.2f}" for r in figure.ratios)
            row = (figure.what, f"{median:.2f}", every, figure.wanted, "✓" if figure.holds else "✗", figure.detail)
            grid.add_row(*row)
            print(*row, sep=" | ", file=sys.stderr, flush=True)
        Console(width=190).print(grid)


if __name__ == "__main__":
    main()
