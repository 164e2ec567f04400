"""Which method of discouraging a center should be the default? Two kinds of data, equal and unequal centers.

    python benchmarks/discouraging.py synthetic [--first 10] [--seeds 4] [--out FILE]
    python benchmarks/discouraging.py real DATA [--label size|organ] [--first 0] [--seeds 40] [--out FILE]
    python benchmarks/discouraging.py table FILE

No evaluation split of the embedded study is read. ``synthetic``: tissue of the embedded study's generator with six
centers whose stains are drawn; two centers in turn are unseen, four train. The tumor share of a center is confounded
with it (0.8, or 0), and the 20 training patients are 5 of each center (equal) or 14, 2, 2, 2 (unequal). Test patients
are other patients, half tumor: of the training centers (``seen``) and of the other two (``unseen``). ``real``: MoNuSeg
tiles with simulated stains, see ``real_tissue.py`` for the draws; test patients are seen in A, B, C (``seen``) and in
three centers that nobody trained on (``unseen``). Backbones are frozen (``mini_inception``; the ImageNet MobileNetV2).

All networks are chosen by the validation loss of the main task. Stain augmentation (``+stain``) is that of the arm
``augmented``: an epoch sees each training patch or one of four re-stained copies.

Fixed before the first run of this code: seeds 10 to 13 and draws 0 to 39 (seeds 0 and 1 were run with an earlier
adversary, and its figures were not looked at). Primary endpoint: the AUC pooled over unseen centers, rows
weighted by p(c)p(y)/p(c, y). Primary contrast: ``ridge`` − ``balanced``. Rule for the default: among the methods
that keep the trunk (mean |z| at least 0.7 of that of ``none``: concepts encouraged, main loss balanced, no pressure; at
most 10 points more dead units) and that do not lose more than 0.005 to ``none`` in the primary endpoint, both as means
over both kinds, the one that leaves least of the center for a linear probe; ``none`` if all methods fail.

Intervals: Student's t over seeds (synthetic: seeds are independent, their folds and regimes are averaged first), and
over draws with the correction of Nadeau and Bengio (2003) for draws that share patients (real: 1/J + 8/18).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from real_tissue import draw_study, tiles
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from conceptkit.evaluate.scores import auc, balanced_accuracy, r2
from conceptkit.guide.building import build_model
from conceptkit.guide.inputs import Inputs, inputs_for, prepare_inputs
from conceptkit.guide.objective import encode
from conceptkit.guide.training import predict, train
from conceptkit.models.backbones import Backbone, open_backbone
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.training import TrainingOptions
from conceptkit.pathology.restaining import restained_at_random
from conceptkit.probe.regression import RegressionConceptVector
from conceptkit.synthetic.null import PATIENT_SPREAD, TISSUES, Shift, draw_patch
from conceptkit.synthetic.patch import Center
from conceptkit.tables.patches import load_table

COPIES = 4
KEEP = (("count", False), ("area", False))
METHODS = ("confusion", "ridge", "reversal", "coral", "mmd", "leace")
ARMS: dict[str, tuple[tuple[tuple[str, bool], ...], dict[str, Any]]] = {
    "baseline": ((), {}),
    "balanced": ((("center", True),), {"strength": 0.0}),
    "none": ((*KEEP, ("center", True)), {"strength": 0.0}),
    **{method: ((*KEEP, ("center", True)), {"method": method}) for method in METHODS},
}
"""Arm → concepts (name, discouraged) and training options. Without strength the adversary learns and acts on nothing,
and the main loss is balanced"""
AUGMENTED = ("balanced", "none", "confusion", "ridge")
PAIRS = ((0, 3), (1, 4), (2, 5))
TILTS = (1.0, 0.6, 0.3, -0.3, -0.6, -1.0)
PATIENTS = {"train": 14, "val": 4, "test": 8}
PATCHES = 15
SIZES = {"equal": (5, 5, 5, 5), "unequal": (14, 2, 2, 2)}
REGIMES = ((0.8, "equal"), (0.8, "unequal"), (0.0, "unequal"))


@dataclass
class Cell:
    """Rows of one experiment with the features that trunks are trained on."""

    frame: pd.DataFrame
    """part (train, val, seen, unseen), patient, center, label (0, 1), count, area"""
    X: torch.Tensor
    """(n, width)"""
    copies: torch.Tensor
    """(training rows, COPIES, width)"""

    def inputs(self, augmented: bool) -> Inputs:
        """Return the rows as a network sees them."""
        if not augmented:
            return Inputs((self.X,), torch.nn.Identity())
        n, trains = len(self.X), np.flatnonzero(self.frame.part == "train")
        index = torch.arange(n)[:, None].repeat(1, COPIES)
        index[trains] = n + torch.arange(len(trains) * COPIES).reshape(-1, COPIES)
        return Inputs((torch.cat([self.X, self.copies.flatten(0, 1)]),), torch.nn.Identity(), copies=index)


def features(backbone: Backbone, images: list[np.ndarray]) -> torch.Tensor:
    """Return the pooled features of a frozen backbone."""
    network = build_model(backbone, [Task(name=MAIN, kind="categorical", classes=("0", "1"))], FROZEN, seed=0)
    batches = (np.stack(images[start : start + 16]) for start in range(0, len(images), 16))
    return prepare_inputs(network, backbone, batches, batch_size=16, device="cpu").tensors[0]


FROZEN = TrainingOptions(unfreeze=())


def restained_copies(pixels: np.ndarray, name: str) -> list[np.ndarray]:
    """Return copies of a patch in other stains, as the arm ``augmented`` has them."""
    return [restained_at_random(pixels, f"{name}, {k}") for k in range(COPIES)]


def drawn_centers(seed: int) -> list[Center]:
    """Return six centers of random stain."""
    rng = np.random.default_rng([seed, 99])
    centers = []
    for tilt in TILTS:
        h, e = np.array((0.63, 0.70, 0.34)), np.array((0.11, 0.92, 0.25))
        h, e = h + rng.normal(0, 0.06, 3), np.abs(e + rng.normal(0, 0.08, 3))
        amounts = np.exp(rng.normal(0, 0.2, 2)) * (0.97, 0.79)
        light = tuple(float(v) for v in rng.uniform(236, 248, 3))
        centers.append(Center(tuple(h), tuple(e), *map(float, amounts), light, float(rng.uniform(0.5, 1.4)), tilt))
    return centers


def drawn_tissue(seed: int, confounding: float) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return rows (split, patient, number in its center, center, label, count, area) and patches."""
    rows, images, patient = [], [], 0
    for name, center in enumerate(drawn_centers(seed)):
        for split, patients in PATIENTS.items():
            for number in range(patients):
                patient += 1
                own = np.random.default_rng([seed, 7, patient])
                spread = PATIENT_SPREAD
                shift = Shift(*(spread[k] * own.standard_normal() for k in ("nuclei", "area", "stain", "stain")))
                share = 0.5 if split == "test" else 0.5 + 0.5 * confounding * center.tilt
                for i in range(PATCHES):
                    label = int(i < round(PATCHES * share + own.uniform(-0.49, 0.49) * (share == 0.5)))
                    patch = draw_patch(
                        np.random.default_rng([seed, 7, patient, i]), TISSUES["tumor" if label else "normal"],
                        center, shift,
                    )  # fmt: skip
                    values = patch.concepts()
                    rows.append((split, patient, number, name, label, values["count"], values["area"]))
                    images.append(patch.pixels)
    return pd.DataFrame(rows, columns=["split", "patient", "number", "center", "label", "count", "area"]), images


def synthetic(seed: int) -> Iterator[tuple[str, Cell]]:
    """Yield the experiments of one tissue seed."""
    backbone, cached = open_backbone("mini_inception"), {}
    for confounding, sizes in REGIMES:
        if confounding not in cached:
            rows, images = drawn_tissue(seed, confounding)
            cached = {confounding: (rows, images, features(backbone, images), {})}
        rows, images, known, copied = cached[confounding]
        for out in PAIRS:
            unseen = rows.center.isin(out)
            limits = dict(zip(sorted({*range(6)} - {*out}), SIZES[sizes], strict=True))
            trains = (rows.split == "train") & (rows.number < rows.center.map(limits).fillna(0))
            part = np.select(
                [trains & ~unseen, (rows.split == "val") & ~unseen, (rows.split == "test") & unseen,
                 rows.split == "test"], ["train", "val", "unseen", "seen"], "",
            )  # fmt: skip
            kept = np.flatnonzero(part != "")
            frame = rows.iloc[kept].assign(part=part[kept]).reset_index(drop=True)
            missing = [i for i in kept[frame.part == "train"] if i not in copied]
            if missing:
                stained = [c for i in missing for c in restained_copies(images[i], f"{seed}, {i}")]
                of_missing = features(backbone, stained).reshape(len(missing), COPIES, -1)
                copied.update(zip(missing, of_missing, strict=True))
            copies = torch.stack([copied[i] for i in kept[frame.part == "train"]])
            yield f"{confounding:g} {sizes}", Cell(frame, known[kept], copies)


def kept(file: Path | None, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return features from a file, computed once."""
    if file is None or not file.exists():
        values = compute()
        if file is None:
            return values
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, values.numpy())
    return torch.from_numpy(np.load(file))


def real(data: Path, label: str, draw: int, cache: Path | None) -> Iterator[tuple[str, Cell]]:
    """Yield the experiment of one draw of patients and stains."""
    backbone = open_backbone("mobilenetv2_100", str(data / "weights" / "mobilenetv2_100.tf_in1k.fp16.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        study = draw_study(data, tiles(data), label, 0.9, draw, Path(folder), unseen="DEF")
        table = load_table(study.table, kinds={"center": "categorical"})
        images = [table.pixels(i)[13:237, 13:237] for i in range(len(table))]
    frame = table.frame[["patient", "center", "label", "count", "area"]].reset_index(drop=True)
    part = table.frame["split"].map({"train": "train", "val": "val", "internal": "seen", "external": "unseen"})
    codes = pd.Categorical(frame["label"]).codes
    frame = frame.assign(part=part.to_numpy(), label=codes, center=pd.Categorical(frame["center"]).codes)
    trains = np.flatnonzero(frame.part == "train")
    stained = [c for i in trains for c in restained_copies(images[i], f"{draw}, {i}")]
    known = kept(cache and cache / f"{label}-{draw}.npy", lambda: features(backbone, images))
    copies = kept(cache and cache / f"{label}-{draw}-copies.npy", lambda: features(backbone, stained))
    yield label, Cell(frame, known, copies.reshape(len(trains), COPIES, -1))


def weights(frame: pd.DataFrame) -> np.ndarray:
    """Return p(c)p(y)/p(c, y) of each row."""
    table = pd.crosstab(frame.center, frame.label, normalize=True)
    joint = np.array([table.loc[c, y] for c, y in zip(frame.center, frame.label, strict=True)])
    return frame.center.map(table.sum(axis=1)).to_numpy() * frame.label.map(table.sum(axis=0)).to_numpy() / joint


def weighted_auc(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """Return the AUC of weighted rows by its definition over pairs."""
    on, off = score[y == 1][:, None], score[y == 0][None]
    pairs = weight[y == 1][:, None] * weight[y == 0][None]
    return float((pairs * ((on > off) + 0.5 * (on == off))).sum() / pairs.sum())


def decoded(X: np.ndarray, codes: np.ndarray, fitted: np.ndarray, read: np.ndarray, crossed: np.ndarray | None) -> dict:
    """Return the balanced accuracy of three fresh probes of the center.

    They are fitted on the training rows, or (``crossed``) on the read rows of other patients.
    """
    probes = {
        "linear": LogisticRegression(C=0.1, max_iter=2000),
        "mlp": MLPClassifier((64,), alpha=1e-2, early_stopping=True, max_iter=300, random_state=0),
        "kernel": SVC(class_weight="balanced"),
    }
    every = np.unique(codes[read])
    parts = [(fitted, read)]
    if crossed is not None:
        parts = [(read[on], read[off]) for on, off in GroupKFold(4).split(read, groups=crossed)]
    codes = np.searchsorted(every, codes)
    result = {}
    for name, probe in probes.items():
        y, predicted = [], []
        for on, off in parts:
            model = make_pipeline(StandardScaler(), probe).fit(X[on], codes[on])
            y.append(codes[off])
            predicted.append(model.predict(X[off]))
        result[f"center {name}"] = balanced_accuracy(np.concatenate(y), np.concatenate(predicted), len(every))
    return result


def trained(cell: Cell, backbone: Backbone, arm: str, augmented: bool, seed: int) -> dict[str, float]:
    """Train one arm and return its figures."""
    concepts, changes = ARMS[arm]
    options = TrainingOptions(unfreeze=(), **{"balance_main": 0.0 if arm == "baseline" else 0.75, **changes})
    frame, part = cell.frame, cell.frame.part.to_numpy()
    at = {name: np.flatnonzero(part == name) for name in ("train", "val", "seen", "unseen")}
    fitted = frame.iloc[at["train"]]
    tasks = [Task(name=MAIN, kind="categorical", classes=("0", "1"))]
    for name, adversarial in concepts:
        if name == "center":
            known = tuple(map(str, sorted(fitted.center.unique())))
            tasks.append(Task(name=name, kind="categorical", classes=known, adversarial=adversarial))
        else:
            scale = {"mean": float(fitted[name].mean()), "deviation": float(fitted[name].std(ddof=0))}
            tasks.append(Task(name=name, kind="continuous", adversarial=adversarial, **scale))
    columns = {MAIN: frame.label.astype(str), "center": frame.center.astype(str), "count": frame["count"],
               "area": frame.area}  # fmt: skip
    targets = {task.name: encode(task, list(columns[task.name])) for task in tasks}
    network = build_model(backbone, tasks, options, seed=seed)
    inputs = inputs_for(network, cell.inputs(augmented))
    result = train(network, inputs, targets, {k: at[k] for k in ("train", "val")}, options, seed=seed)
    outputs, trunk = predict(result.model, inputs_for(result.model, cell.inputs(False)))
    score, Z = outputs[MAIN][:, 0].double().numpy(), trunk.double().numpy()
    y, centers = frame.label.to_numpy(), frame.center.to_numpy()
    found: dict[str, float] = {}
    # A draw of real tissue may lack training patients of one center.
    crossed = frame.patient.to_numpy()[at["seen"]] if backbone.name.startswith("mobilenet") else None
    for split in ("unseen", "seen"):
        rows = at[split]
        found[f"{split} pooled"] = weighted_auc(y[rows], score[rows], weights(frame.iloc[rows]))
        within = [rows[centers[rows] == c] for c in np.unique(centers[rows])]
        found[f"{split} within"] = float(np.mean([auc(y[w], score[w]) for w in within if len(set(y[w])) == 2]))
    found |= decoded(Z, centers, at["train"], at["seen"], crossed)
    for concept in ("count", "area"):
        v = frame[concept].to_numpy(float)
        on, off = at["train"][~np.isnan(v[at["train"]])], at["unseen"][~np.isnan(v[at["unseen"]])]
        found[f"R² {concept}"] = r2(v[off], RegressionConceptVector().fit(Z[on], v[on]).predict(Z[off]))
    seen = Z[at["train"]]
    return {**found, "mean |z|": float(np.abs(seen).mean()), "dead": float((np.abs(seen).max(0) < 1e-6).mean()),
            "epoch": float(result.best_epoch)}  # fmt: skip


def run(kind: str, given: argparse.Namespace) -> None:
    """Train all arms of the seeds and write a row per network."""
    names = {"synthetic": "mini_inception", "real": "mobilenetv2_100"}
    rows: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out and given.out.exists() else []
    done = {(row["kind"], row["seed"]) for row in rows}
    weights_file = str(given.data / "weights" / "mobilenetv2_100.tf_in1k.fp16.safetensors") if kind == "real" else None
    backbone = open_backbone(names[kind], weights_file)
    for seed in range(given.first, given.first + given.seeds):
        if (f"{kind}", seed) in done:
            continue
        start = time.perf_counter()
        for regime, cell in (
            synthetic(seed) if kind == "synthetic" else real(given.data, given.label, seed, given.cache)
        ):
            for augmented in (False, True):
                for arm in AUGMENTED if augmented else ARMS:
                    row = {"kind": kind, "seed": seed, "regime": regime, "arm": arm + " +stain" * augmented}
                    rows.append(row | trained(cell, backbone, arm, augmented, seed))
        if given.out is not None:
            given.out.write_text(json.dumps(rows))
        print(f"{kind} {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    table(rows)


def interval(values: np.ndarray, kind: str) -> tuple[float, float]:
    """Return mean and half the width of the 95 % interval of differences over seeds or draws (J,)."""
    n = len(values)
    share = 1 / n + (8 / 18 if kind == "real" else 0.0)
    half = student.ppf(0.975, n - 1) * np.sqrt(share) * values.std(ddof=1) if n > 1 else np.nan
    return float(values.mean()), float(half)


def table(rows: list[dict[str, Any]]) -> None:
    """Print the means of all arms and the differences of the primary endpoint, by kind and regime."""
    frame = pd.DataFrame(rows)
    figures = [c for c in frame.columns if c not in ("kind", "seed", "regime", "arm")]
    for kind, of_kind in frame.groupby("kind"):
        for regime in ["all", *of_kind.regime.unique()] if of_kind.regime.nunique() > 1 else of_kind.regime.unique():
            part = of_kind if regime == "all" else of_kind[of_kind.regime == regime]
            means = part.groupby(["arm", "seed"])[figures].mean()
            print(f"\n{kind}, {regime}, {part.seed.nunique()} seeds")
            print(f"{'arm':20s} " + " ".join(f"{f:>13s}" for f in figures) + "  unseen pooled − balanced, − baseline")
            for arm in dict.fromkeys(part.arm):
                cells = " ".join(f"{v:13.3f}" for v in means.loc[arm].mean())
                gains = []
                for against in ("balanced", "baseline"):
                    gain = (means.loc[arm] - means.loc[against])["unseen pooled"].to_numpy()
                    gains.append("{:+.3f} ± {:.3f}".format(*interval(gain, kind)))
                print(f"{arm:20s} {cells}  {', '.join(gains)}")


def main() -> None:
    """Run the chosen part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("synthetic", "real", "table"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--label", choices=("size", "organ"), default="size")
    parser.add_argument("--first", type=int)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, help="folder of the features of real tissue")
    given = parser.parse_args()
    if given.part == "table":
        table(json.loads(given.data.read_text()))
        return
    if given.first is None:
        given.first = 10 if given.part == "synthetic" else 0
    torch.set_num_threads(1)
    with threadpool_limits(1):
        run(given.part, given)


if __name__ == "__main__":
    main()
