"""Guiding on real tissue: MoNuSeg tiles with a simulated stain per center, confounded with the label in training.

    python benchmarks/real_tissue.py DATA [--label organ|size] [--draws 5] [--first 0] [--arms …] [--out FILE]

DATA holds ``monuseg/`` and ``weights/``. Every draw splits the 30 patients anew into training (18), validation (4) and
test (8), and draws the stain of four centers (hematoxylin and eosin, each times 2^u, u uniform in ±0.8). Training and
validation patients belong to centers A, B, C, so that the label follows from the center as far as ``--confounding``
says; test patients are seen once in each of A, B, C (``internal``: no relation) and once in D, which nobody trained on
(``external``). The label is the organ (urogenital or not: of the patient) or the size of nuclei (mean area of the
tile's nuclei above the median of all tiles). Concepts are read at the trunk's end by a fresh probe,
fitted on the training and validation patients and scored on the external ones; the center by one that is
cross-validated by patient on the internal ones, chance 0.33. The backbone is the ImageNet MobileNetV2, frozen unless
``--last-block``. Arms share data, order, seeds and options. Differences are over draws:
mean ± standard error, paired.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from conceptkit.evaluate.scores import auc, balanced_accuracy, r2
from conceptkit.guide.building import build_model
from conceptkit.guide.inputs import inputs_for, prepare_inputs
from conceptkit.guide.objective import encode
from conceptkit.guide.plan import concept_task, make_plan
from conceptkit.guide.recipes import recipe_options
from conceptkit.guide.training import predict, train
from conceptkit.models.backbones import open_backbone
from conceptkit.models.guided import MAIN, Task
from conceptkit.options.training import TrainingOptions
from conceptkit.pathology.disturbances import restain
from conceptkit.probe.regression import RegressionConceptVector
from conceptkit.probe.targets import make_target
from conceptkit.probe.validation import held_out
from conceptkit.tables.patches import load_table
from conceptkit.tables.study import Study

TILE = 250
UROGENITAL = {"kidney", "prostate", "bladder"}
BOTH = (("count", False), ("area", False), ("center", True))
ARMS = {
    "baseline": ((), {}),
    "random value": ((("random", False),), {}),
    "count": ((("count", False),), {}),
    "area": ((("area", False),), {}),
    "count, area": ((("count", False), ("area", False)), {}),
    "−center confusion": ((("center", True),), {}),
    "count, area −center confusion": (BOTH, {}),
    "count, area −center confusion, main not balanced": (BOTH, {"balance_main": 0.0}),
    "count, area −center reversal": (BOTH, {"method": "reversal"}),
    "count, area −center reversal, plain uncertainty": (
        BOTH,
        {
            **{"method": "reversal", "weighting": "uncertainty", "reversal": "constant"},
            **{"warmup": 0, "balance": False, "balance_main": 0.0},
        },
    ),
    "count, area −center coral": (BOTH, {"method": "coral"}),
    "count, area −center mmd": (BOTH, {"method": "mmd"}),
    "count, area −center leace": (BOTH, {"method": "leace"}),
}


def tiles(data: Path) -> pd.DataFrame:
    """Return one row per tile with its place, count and mean nuclear area (px²)."""
    rows = []
    for image in pd.read_csv(data / "monuseg" / "images.csv").to_dict("records"):
        mask = np.asarray(Image.open(data / "monuseg" / image["mask"]))
        for y in range(0, 1000, TILE):
            for x in range(0, 1000, TILE):
                sizes = np.bincount(mask[y : y + TILE, x : x + TILE].ravel())[1:]
                sizes = sizes[sizes > 0]
                rows.append(
                    {
                        **{k: image[k] for k in ("image", "organ", "patient")},
                        **{"x": x, "y": y, "count": len(sizes), "area": sizes.mean() if len(sizes) else np.nan},
                    }
                )
    return pd.DataFrame(rows)


def draw_study(
    data: Path, base: pd.DataFrame, label: str, confounding: float, seed: int, folder: Path, unseen: str = "D"
) -> Study:
    """Write one draw's patches and table into ``folder``; ``unseen`` are the centers that nobody trains on."""
    chance = np.random.default_rng([seed, 42])
    if label == "organ":
        base = base.assign(label=np.where(base.organ.isin(UROGENITAL), "urogenital", "other"))
    else:
        base = base.assign(label=np.where(base.area > base.area.median(), "large", "small"))
    base = base.assign(random=chance.normal(size=len(base)))
    share = (base.label == base.label.max()).groupby(base.patient).mean()
    patients = chance.permutation(share.index.to_numpy())
    # One side of the label after the other, so that both are in every part.
    by_share = patients[np.argsort(-share[patients].to_numpy(), kind="stable")]
    order = np.stack([chance.permutation(by_share[:15]), chance.permutation(by_share[15:])], 1).ravel()
    part = dict(zip(order, ["train"] * 18 + ["val"] * 4 + ["test"] * 8, strict=True))
    stains = {center: chance.uniform(-0.8, 0.8, 2) for center in "ABC" + unseen}
    high = share > share.median()
    home = {}
    for patient in order:
        preferred = "A" if high[patient] else "B"
        home[patient] = preferred if chance.random() < confounding else str(chance.choice(list("ABC")))
    rows, cached = [], {}
    for i, tile in enumerate(base.to_dict("records")):
        if tile["image"] not in cached:
            cached = {tile["image"]: np.asarray(Image.open(data / "monuseg" / tile["image"]).convert("RGB"))}
        pixels = cached[tile["image"]][tile["y"] : tile["y"] + TILE, tile["x"] : tile["x"] + TILE]
        split = part[tile["patient"]]
        for center in "ABC" + unseen if split == "test" else home[tile["patient"]]:
            name = f"{i:03d}{center}"
            stained = restain(restain(pixels, stains[center][0], stain=0), stains[center][1], stain=1)
            Image.fromarray(stained).save(folder / f"{name}.png", compress_level=1)
            where = split if split != "test" else "external" if center in unseen else "internal"
            kept = {k: tile[k] for k in ("patient", "label", "count", "area", "random")}
            rows.append({"patch_id": name, "image": f"{name}.png", "split": where, "center": center, **kept})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return Study(name="real tissue", table=folder / "table.csv", group="patient")


def run_draw(study: Study, weights: str, seed: int, epochs: int, last_block: bool, arms) -> dict[str, dict[str, float]]:
    """Train every arm on one draw and return arm → figures."""
    # A patient's tiles are evaluated in all centers: no leakage, as none of them trains.
    data = load_table(study.table, kinds={"center": "categorical"})
    plan = make_plan(study, data, allow_leakage=True)
    backbone = open_backbone("mobilenetv2_100", weights)
    part = data.select(plan.used)
    at = {name: np.searchsorted(plan.used, rows) for name, rows in plan.rows.items()}
    patients = part.groups("patient")
    shared, found = None, {}
    for arm, (wishes, changes) in arms.items():
        own = {
            "epochs": epochs,
            **recipe_options("ours", backbone, []),
            **({} if last_block else {"unfreeze": ()}),
            **changes,
        }
        options = TrainingOptions(**own)
        tasks = [Task(name=MAIN, kind="categorical", classes=plan.classes)]
        tasks += [concept_task(data, name, plan.rows["train"], adversarial=a) for name, a in wishes]
        columns = {task.name: part.concept("label" if task.name == MAIN else task.name).values for task in tasks}
        targets = {task.name: encode(task, list(columns[task.name])) for task in tasks}
        network = build_model(backbone, tasks, options, seed=seed)
        if shared is None:
            batches = (
                np.stack([part.pixels(k)[13:237, 13:237] for k in range(s, min(s + 32, len(part)))])
                for s in range(0, len(part), 32)
            )
            shared = prepare_inputs(network, backbone, batches, batch_size=32, device="cpu")
        start = time.perf_counter()
        try:
            result = train(network, inputs_for(network, shared), targets, at, options, seed=seed)
        except Exception as error:  # an arm that diverges is a finding
            print(f"    {arm}: {error}", flush=True)
            found[arm] = {}
            continue
        outputs, trunk = predict(result.model, inputs_for(result.model, shared))
        score = outputs[MAIN][:, 0].double().numpy()
        y = np.array([plan.classes.index(v) for v in columns[MAIN]])
        figures = {split: auc(y[at[split]], score[at[split]]) for split in ("internal", "external")}
        X = trunk.double().numpy()
        fitted, fresh = np.concatenate([at["train"], at["val"]]), at["external"]
        for concept in ("count", "area"):
            values = part.concept(concept).values
            on, off = fitted[~np.isnan(values[fitted])], fresh[~np.isnan(values[fresh])]
            vector = RegressionConceptVector().fit(X[on], values[on], groups=patients[on])
            figures[f"R² {concept}"] = r2(values[off], vector.predict(X[off]))
        rows = at["internal"]
        target = make_target("center", "categorical", part.select(rows).concept("center").values, patients[rows])
        figures["center"] = balanced_accuracy(target.y, held_out(X[rows], [target], folds=4)[0], 3)
        found[arm] = figures
        print(
            f"    {arm:50s} " + " ".join(f"{k} {v:.3f}" for k, v in figures.items())
            + f"  best epoch {result.best_epoch}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )  # fmt: skip
    return found


def main() -> None:
    """Run all draws and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--label", choices=["organ", "size"], default="organ")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--confounding", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--arms", nargs="*", help="arms to train beside the baseline; all without it")
    parser.add_argument("--last-block", action="store_true", help="train the network's last block too (slow)")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    weights = str(given.data / "weights" / "mobilenetv2_100.tf_in1k.fp16.safetensors")
    base = tiles(given.data)
    everything = []
    for name in given.arms or ():
        if name not in ARMS:
            parser.error(f"arms: {name!r} is none of {', '.join(ARMS)}")
    arms = {name: ARMS[name] for name in ARMS if not given.arms or name in {"baseline", *given.arms}}
    for draw in range(given.first, given.first + given.draws):
        print(f"draw {draw}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            study = draw_study(given.data, base, given.label, given.confounding, draw, Path(folder))
            everything.append(run_draw(study, weights, draw, given.epochs, given.last_block, arms))
        if given.out is not None:
            given.out.write_text(json.dumps(everything, indent=1))
    print(f"\nlabel {given.label}, confounding {given.confounding}, {given.draws} draws: mean (difference ± error)")
    names = list(everything[0]["baseline"])
    print(f"{'arm':50s} " + " ".join(f"{n:>22s}" for n in names))
    for arm in arms:
        cells = []
        for name in names:
            pairs = [(d[arm][name], d["baseline"][name]) for d in everything if d[arm]]
            values = np.array(pairs)
            if not len(values):
                cells.append(f"{'diverged':>22s}")
                continue
            gain = values[:, 0] - values[:, 1]
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
            cells.append(f"{values[:, 0].mean():.3f} ({gain.mean():+.3f} ± {error:.3f})".rjust(22))
        print(f"{arm:50s} " + " ".join(cells))


if __name__ == "__main__":
    main()
