"""The paper's experiment end to end, for whoever owns the Camelyon patches (and PanNuke): tables, grid, report.

    python examples/camelyon_experiment.py \\
        --patches patches.h5 --concepts concept_measures.h5 --lists train.csv val.csv test.csv \\
        --pannuke pannuke/ --out runs/camelyon

``--patches`` and ``--concepts`` are in the authors' layout (``file[db][entry_path][patch_no]``), ``--pannuke`` holds
the folders ``fold1`` to ``fold3``. All patches are measured anew, so that Camelyon and PanNuke have the same units; the
released z-scores do not. Splits are made by patient: the released ones have patients on both sides, which ``guide``
refuses. Center 4 is external, as in the paper. Call it again after an interruption: what is finished is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import conceptkit as ck
from conceptkit.pathology.adapters.pannuke import pannuke
from conceptkit.pathology.adapters.paper_hdf5 import MEASURES, paper_table

EXTERNAL = "4"
"""The paper's external center of Camelyon17"""

SEEDS = (1001, 822, 1139, 2409, 2009)
"""The first of the paper's"""


def patient_splits(table: pd.DataFrame, *, seed: int = 0) -> pd.Series:
    """Return train, val, internal and external by patient: each center's patients dealt 3 : 1 : 1."""
    split = pd.Series("train", index=table.index)
    split[table["center"] == EXTERNAL] = "external"
    random = np.random.default_rng(seed)
    for _, rows in table[table["center"] != EXTERNAL].groupby("center"):
        patients = random.permutation(sorted(rows["patient"].unique()))
        for k, name in ((3, "val"), (4, "internal")):
            chosen = patients[k % len(patients) :: 5] if len(patients) > k else []
            split[rows.index[rows["patient"].isin(chosen)]] = name
    return split


def make_table(options: argparse.Namespace) -> Path:
    """Write the patch table: Camelyon's patches, PanNuke's crops, splits by patient, measures of both."""
    out = options.out / "patches.csv"
    if out.exists():
        return out
    options.out.mkdir(parents=True, exist_ok=True)
    found = paper_table(options.concepts, lists=options.lists, out=out, patches=options.patches)
    for note in found.notes:
        print("note:", note)
    table = found.table.drop(columns=list(MEASURES)).dropna(subset=["patient"])
    table["split"] = patient_splits(table)
    if options.pannuke is not None:
        folds = [options.pannuke / f"fold{k}" for k in (1, 2, 3)]
        crops = pannuke(folds, out=options.out / "pannuke.csv").table
        crops["patient"] = crops["group"]
        crops["split"] = crops["split"].replace({"external": "pannuke"})
        table = pd.concat([table, crops[[c for c in crops.columns if c in (*table.columns, "mask")]]])
    unmeasured = options.out / "unmeasured.csv"
    table.to_csv(unmeasured, index=False)
    ck.run_measure(unmeasured, out=out, nuclei="hematoxylin", workers=options.workers, skip_bad=True)
    return out


def write_study(options: argparse.Namespace, table: Path) -> Path:
    """Write the study file of the experiment."""
    columns = pd.read_csv(table, nrows=1).columns
    area = "area_um2" if "area_um2" in columns and pd.read_csv(table)["area_um2"].notna().any() else "area_px"
    text = f"""# The paper's experiment: made by examples/camelyon_experiment.py
name = "camelyon"
table = "{table.name}"
model = "{options.model}"
weights = "{options.weights}"
layers = ["{options.layer}"]
group = "patient"

[concepts]
probe = ["{area}", "count", "contrast", "correlation", "center"]
encourage = ["{area}", "count", "contrast"]
discourage = ["center"]
kind = {{ center = "categorical" }}
"""
    path = options.out / "conceptkit.toml"
    path.write_text(text, encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, required=True)
    parser.add_argument("--concepts", type=Path, required=True)
    parser.add_argument("--lists", type=Path, nargs="*", default=[])
    parser.add_argument("--pannuke", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/camelyon"))
    parser.add_argument("--model", default="inception_v3")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--layer", default="mixed10")
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--models", help="instead of the paper's grid, such as 'count; count,-center'")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)

    table = make_table(options)
    study = write_study(options, table)
    runs = []
    for name in ("predictivity", "probe"):  # one after the other; a finished one is not made again
        folder = options.out / name
        if not (folder / "record.json").exists():
            if name == "predictivity":
                ck.Predictivity(seeds=options.seeds).run(study, out=folder)  # Table 3
            else:
                ck.run_probe(study, permutations=options.permutations, out=folder)
        runs.append(folder)
    epochs = {} if options.epochs is None else {"epochs": options.epochs}
    rows = pd.read_csv(table, dtype={"patient": str})
    patients = int(rows[rows["split"] == "internal"]["patient"].nunique())  # the released internal test has four
    ck.Grid(
        ablate=options.models or "paper",
        controls=options.models is None,
        recipe=options.recipe,
        **epochs,
        within=["center"],
        folds=min(5, patients),
        seeds=options.seeds,
    ).run(study, out=options.out / "grid")
    runs.append(options.out / "grid")
    page = ck.write_report(
        runs,
        options.out / "report.html",
        latex=options.out / "tables",
        csv=options.out / "csv",
        figures=options.out / "figures",
    )
    print("report:", page)
    return page


if __name__ == "__main__":
    main()
