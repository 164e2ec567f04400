"""What a concept bottleneck gains on ``embedded:shortcut``, and where it gains nothing (generated tissue).

    python benchmarks/shortcut_study.py contrasts --out contrasts.json
    python benchmarks/shortcut_study.py map --out map.json
    python benchmarks/shortcut_study.py contrasts --join part1.json part2.json --out contrasts.json

Written down and committed before the first run on version 2 of the study (docs/embedded-study.md says why there is a
second one). Endpoint: AUC pooled over the four unseen centers, weighted so that
label and center are independent (``auc_weighted`` of ``external``). Tissue seeds 200 to 207, network seeds 0 and 1.
A difference is the mean over network seeds; its 95 % interval is that of Student's t over the eight tissue seeds, which
share no patient.

``contrasts``: `guide` at its defaults on frozen features of ``mixed10``, made once per tissue seed. Area and count are
encouraged and read through, the center is discouraged. With all labels, and with the labels of 40 training patients:
14, 6, 12 and 8 of the centers A to D, which is their share; all training rows keep their concept values, and
validation rows their labels. Primary: through-balanced − balanced, wanted at least +.02 with all labels and +.05 with
40 labelled patients, the interval above 0. Secondary: through − random, through − shuffled, through − components, the
intervals above 0. ``random`` and ``shuffled`` are guided networks with a random or shuffled target.

``map``: the same bottleneck and logistic regression on the frozen features, both with rows weighted so that label and
center are independent, without a trained network. Labelled patients 40, 160, 240 (all) × confounding 0, 0.8 ×
sufficiency 1, 0.75, 0.5, where the width of fibres causes the rest of the label. Six patches of each patient are
drawn without a label; labels follow from their causes, two draws for each tissue seed in place of network seeds, and
up to four patches a patient are kept, so that every center has its share of tumor.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import t
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import conceptkit as ck
from conceptkit.evaluate.weighted import row_weights
from conceptkit.models.mini_inception import MEAN, STD, load_mini_inception
from conceptkit.report.drawing import COLOURS
from conceptkit.synthetic import shortcut
from conceptkit.synthetic.patch import MPP, visible_nuclei

TISSUE_SEEDS = range(200, 208)
NETWORK_SEEDS = (0, 1)
ARMS = ("balanced", "through", "through-balanced", "random", "shuffled", "components")
CONTRASTS = (
    ("through-balanced", "balanced"),
    ("through", "random"),
    ("through", "shuffled"),
    ("through", "components"),
)
LABELLED = {40: (14, 6, 12, 8), 160: (56, 24, 48, 32), 240: (84, 36, 72, 48)}
"""Labelled training patients → of them in the centers A to D"""

CONFOUNDINGS = (0.0, 0.8)
SUFFICIENCIES = (1.0, 0.75, 0.5)
POOL = 6
"""Patches of a patient from which the map's are taken"""


def labelled_only(table, number):
    """Return the table without the labels of the other training patients; the first ones of each center keep theirs."""
    train = table[table["split"] == "train"]
    kept = set()
    for center, n in zip("ABCD", LABELLED[number], strict=True):
        kept |= set(sorted(train.loc[train["center"] == center, "patient"].unique())[:n])
    without = (table["split"] == "train") & ~table["patient"].isin(kept)
    return table.assign(label=table["label"].mask(without))


def interval(values):
    """Return mean and 95 % interval of one value per tissue seed."""
    values = np.asarray(values, float)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"mean": values.mean(), "low": values.mean() - half, "high": values.mean() + half, "values": values.tolist()}


def contrasts(seeds, scratch):
    """Return labelled patients → arm → AUC, and the differences."""
    auc = {number: {arm: [] for arm in ARMS} for number in (40, 240)}
    for seed in seeds:
        start = time.perf_counter()
        study = ck.embedded_study("shortcut", seed=seed, cache=scratch)
        store = scratch / f"{seed}.h5"
        ck.extract("mini_inception", study, layers="mixed10", weights="tissue", store=store)
        table = pd.read_csv(study.table)
        table["h5"] = str(study.table.parent / "patches.h5")
        for number, of_arm in auc.items():
            few = dataclasses.replace(study, table=labelled_only(table, number))
            guide = ck.Guide(
                arms=ARMS,
                encourage=("area", "count"),
                through=("area", "count"),
                discourage=("center",),
                seeds=NETWORK_SEEDS,
                features=str(store),
            )
            record = guide.run(few, out=scratch / f"{seed}-{number}")
            for arm in ARMS:
                found = [run.metrics["external"]["auc_weighted"] for run in record.runs if run.name == arm]
                of_arm[arm].append(float(np.mean(found)))
            shown = ", ".join(f"{arm} {scores[-1]:.3f}" for arm, scores in of_arm.items())
            print(f"tissue {seed}, {number} labelled: {shown}; {time.perf_counter() - start:.0f} s", flush=True)
    found = {}
    for number, of_arm in auc.items():
        found[number] = {arm: interval(values) for arm, values in of_arm.items()}
        for one, other in CONTRASTS:
            found[number][f"{one} - {other}"] = interval(np.subtract(of_arm[one], of_arm[other]))
    return found


@torch.no_grad()
def draw_pool(seed):
    """Return training and external patches without a label: a table with ``fibres``, and features (n, 256)."""
    model = load_mini_inception(weights="tissue").eval()
    rows, X, patient = [], [], 0
    for split in ("train", "external"):
        patients = shortcut.PLAN[split]
        for name in (name for name, number in patients.items() for _ in range(number)):
            patient += 1
            own = np.random.default_rng([seed, patient])
            nuclei, stain = own.standard_normal(2), 0.12 * own.standard_normal(2)
            pixels = []
            for i in range(POOL):
                rng = np.random.default_rng([seed, patient, i])
                labels, fibres = shortcut.draw_nuclei(rng, nuclei)
                sizes = visible_nuclei(labels) * MPP**2
                center = {**shortcut.CENTERS, **shortcut.UNSEEN}[name]
                pixels.append(shortcut.stained(rng, labels, center, stain, fibres))
                rows.append((patient, split, name, len(sizes), sizes.mean(), fibres))
            x = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - MEAN[0]) / STD[0]
            X.append(model(x.contiguous(memory_format=torch.channels_last)).double().numpy())
    columns = ["patient", "split", "center", "count", "area", "fibres"]
    return pd.DataFrame(rows, columns=columns), np.concatenate(X)


def chosen(pool, confounding, sufficiency, rng):
    """Return the rows of a study from a pool, and whether they are tumor."""
    odds = [shortcut.log_odds(*row, sufficiency) for row in pool[["count", "area", "fibres"]].to_numpy()]
    tumor = rng.uniform(size=len(pool)) < 1 / (1 + np.exp(-np.array(odds)))
    rows = []
    for (split, name), own in pool.groupby(["split", "center"]).indices.items():
        tilt = shortcut.CENTERS[name].tilt if split == "train" else 0.0
        share = 0.5 + 0.5 * confounding * tilt
        for place, start in enumerate(own[::POOL]):
            wanted = round((place + 1) * shortcut.PATCHES * share) - round(place * shortcut.PATCHES * share)
            at = np.arange(start, start + POOL)
            rows += [*at[tumor[at]][:wanted], *at[~tumor[at]][: shortcut.PATCHES - wanted]]
    return np.array(rows), tumor


def bottleneck_gains(pool, X, rows, tumor):
    """Return, for each number of labelled patients, the AUC on unseen centers of bottleneck and features (2,)."""
    table = pool.iloc[rows]
    y, X = tumor[rows], X[rows]
    train, external = ((table["split"] == split).to_numpy() for split in ("train", "external"))
    patients = table["patient"].to_numpy()
    named = table.assign(label=np.where(y, "tumor", "normal"), patient=[f"{p:04d}" for p in patients])
    centers = np.unique(table["center"], return_inverse=True)[1]
    concepts = table[["count", "area"]].to_numpy(float)
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    read = np.empty_like(concepts)
    read[train] = cross_val_predict(ridge, X[train], concepts[train], groups=patients[train], cv=GroupKFold(10))
    read[~train] = ridge.fit(X[train], concepts[train]).predict(X[~train])
    found = {}
    for number in LABELLED:
        labelled = train & labelled_only(named, number)["label"].notna().to_numpy()
        weights = row_weights(y[labelled].astype(int), centers[labelled])
        found[number] = []
        for Z in (read, X):
            search = GridSearchCV(
                make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", max_iter=200)),
                {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1]},
                cv=GroupKFold(4),
                scoring="neg_log_loss",
            )
            fit = {"logisticregression__sample_weight": weights}
            search.fit(Z[labelled], y[labelled], groups=patients[labelled], **fit)
            score = search.decision_function(Z[external])
            weighed = row_weights(y[external].astype(int), np.unique(centers[external], return_inverse=True)[1])
            found[number].append(roc_auc_score(y[external], score, sample_weight=weighed))
    return found


def regimes(seeds, scratch):
    """Return a list of cells with the gain of the bottleneck."""
    cells = {cell: [] for cell in itertools.product(LABELLED, CONFOUNDINGS, SUFFICIENCIES)}
    levels = {cell: [] for cell in cells}
    for seed in seeds:
        start = time.perf_counter()
        pool, X = draw_pool(seed)
        for confounding, sufficiency in itertools.product(CONFOUNDINGS, SUFFICIENCIES):
            found = {number: [] for number in LABELLED}
            for draw in NETWORK_SEEDS:
                rows, tumor = chosen(pool, confounding, sufficiency, np.random.default_rng([seed, draw, 7]))
                for number, scores in bottleneck_gains(pool, X, rows, tumor).items():
                    found[number].append(scores)
            for number, scores in found.items():
                through, direct = np.mean(scores, axis=0)
                cells[number, confounding, sufficiency].append(through - direct)
                levels[number, confounding, sufficiency].append((through, direct))
        print(f"tissue {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    names = ("labelled", "confounding", "sufficiency")
    return [
        {**dict(zip(names, cell, strict=True)), **interval(gains)}
        | dict(zip(("through", "direct"), np.mean(levels[cell], axis=0), strict=True))
        for cell, gains in cells.items()
    ]


def joined(parts):
    """Return the numbers of parts of a study as those of all of their tissue seeds."""
    if isinstance(parts[0], dict):
        found = {}
        for number, of_number in parts[0].items():
            values = {name: [x for part in parts for x in part[number][name]["values"]] for name in of_number}
            found[number] = {name: interval(own) for name, own in values.items()}
        return found
    out = []
    for cells in zip(*parts, strict=True):
        sizes = [len(cell["values"]) for cell in cells]
        levels = {k: np.average([cell[k] for cell in cells], weights=sizes) for k in ("through", "direct")}
        out.append({**cells[0], **interval([x for cell in cells for x in cell["values"]]), **levels})
    return out


def draw_map(cells, path):
    """Draw the gain by labelled patients: a panel for each confounding, a line for each sufficiency."""
    plt.rcParams.update({"svg.hashsalt": "conceptkit", "svg.fonttype": "none", "font.size": 10})
    figure, panels = plt.subplots(1, len(CONFOUNDINGS), figsize=(7, 3.2), sharey=True, layout="constrained")
    for panel, confounding in zip(panels, CONFOUNDINGS, strict=True):
        panel.axhline(0, color="0.6", linewidth=0.8)
        for k, sufficiency in enumerate(SUFFICIENCIES):
            own = [c for c in cells if (c["confounding"], c["sufficiency"]) == (confounding, sufficiency)]
            x = np.array([c["labelled"] for c in own]) * 1.04 ** (k - 1)
            mean, low, high = (np.array([c[name] for c in own]) for name in ("mean", "low", "high"))
            style = {"color": COLOURS[k], "marker": "os^"[k], "linestyle": ("-", "--", ":")[k], "capsize": 2}
            panel.errorbar(x, mean, [mean - low, high - mean], label=f"{sufficiency:g}", **style)
        panel.set_xscale("log")
        panel.set_xticks(list(LABELLED), [str(n) for n in LABELLED])
        panel.minorticks_off()
        panel.set_title(f"confounding {confounding:g}")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("AUC on unseen centers:\nbottleneck − features")
    figure.supxlabel("labelled training patients", fontsize=10)
    panels[0].legend(title="sufficiency", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main():
    """Run one part and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("contrasts", "map"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tissue", type=int, nargs="+", default=list(TISSUE_SEEDS), help="tissue seeds")
    parser.add_argument("--join", type=Path, nargs="+", help="files of other tissue seeds, to be put together")
    parser.add_argument("--figure", type=Path, help="SVG of the map")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = contrasts if given.part == "contrasts" else regimes
        parts = [json.loads(path.read_text()) for path in given.join or ()]
        found = joined(parts) if parts else work(given.tissue, Path(folder))
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.part == "contrasts":
        for number, of_number in found.items():
            for name, value in of_number.items():
                print(f"{number} labelled, {name}: {value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]")
    else:
        if given.figure:
            draw_map(found, given.figure)
        for cell in found:
            print({key: value for key, value in cell.items() if key != "values"})


if __name__ == "__main__":
    main()
