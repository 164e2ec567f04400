"""What guiding shows on the embedded study (generated tissue), at default settings.

    python benchmarks/guiding_study.py [--seeds 5] [--only confounding|combining] [--out FOLDER]

``confounding``: area and count encouraged, center discouraged, at confounding 0, 0.3, 0.6 and 0.9 of the training rows.
Differences to the baseline are means over seeds with 95 % intervals over patients; AUC "balanced" is that of internal
rows, which are balanced within center. ``combining``: the held-out R² of each concept when it is encouraged alone and
with all others, and with the center discouraged too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import conceptkit as ck

CONFOUNDINGS = (0.0, 0.3, 0.6, 0.9)
CONCEPTS = ("area", "count", "contrast")


def shown(record, split, metric):
    """Return one paired difference as text."""
    for one in record.differences:
        if (one.run, one.split, one.metric) == ("guided", split, metric):
            return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
    return "–"


def mean(record, run, part, name, metric):
    """Return a figure's mean over seeds."""
    return float(np.mean([getattr(r, part)[name][metric] for r in record.runs if r.name == run]))


def confounding(seeds, folder, options):
    """Print the curve over confounding."""
    names = ("AUC external", "AUC internal", "R² area", "R² count", "center, linear", "center, MLP")
    print(
        f"{'confounding':12s} {' '.join(f'{name:24s}' for name in names)} baseline → guided: external, internal, center"
    )
    for value in CONFOUNDINGS:
        start = time.perf_counter()
        study = ck.embedded_study(confounding=value)
        record = ck.run_guide(
            study,
            encourage=["area", "count"],
            discourage=["center"],
            seeds=range(seeds),
            options=options,
            out=folder / f"confounding-{value}",
        )
        cells = [
            shown(record, "external", "auc"),
            shown(record, "internal", "auc"),
            shown(record, record.evaluated_on, "probe:area"),
            shown(record, record.evaluated_on, "probe:count"),
            shown(record, record.evaluated_on, "linear:center"),
            shown(record, record.evaluated_on, "mlp:center"),
        ]
        levels = ", ".join(
            f"{mean(record, 'baseline', *key):.3f} → {mean(record, 'guided', *key):.3f}"
            for key in (
                ("metrics", "external", "auc"),
                ("metrics", "internal", "auc"),
                ("leakage", "center", "linear"),
            )
        )
        took = time.perf_counter() - start
        print(f"{value:<12g} {' '.join(f'{c:24s}' for c in cells)} {levels}  {took:.0f} s", flush=True)


def combining(seeds, folder, options):
    """Print each concept's R² alone, with the others, and with the center discouraged."""
    study = ck.embedded_study()
    found = {}
    for concept in CONCEPTS:
        record = ck.run_guide(
            study,
            encourage=[concept],
            discourage=[],
            seeds=range(seeds),
            options=options,
            out=folder / f"alone-{concept}",
        )
        found[concept, "baseline"] = mean(record, "baseline", "concepts", concept, "probe")
        found[concept, "alone"] = mean(record, "guided", "concepts", concept, "probe")
    for name, discourage in (("all", []), ("all −center", ["center"])):
        record = ck.run_guide(
            study,
            encourage=list(CONCEPTS),
            discourage=discourage,
            seeds=range(seeds),
            options=options,
            out=folder / f"combined-{len(discourage)}",
        )
        for concept in CONCEPTS:
            found[concept, name] = mean(record, "guided", "concepts", concept, "probe")
    columns = ("baseline", "alone", "all", "all −center")
    print(f"\nheld-out R²  {' '.join(f'{c:>12s}' for c in columns)}   loss from combining")
    for concept in CONCEPTS:
        values = [found[concept, column] for column in columns]
        losses = f"{values[1] - values[2]:+.3f}, with center {values[1] - values[3]:+.3f}"
        print(f"{concept:12s} {' '.join(f'{v:12.3f}' for v in values)}   {losses}", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=["confounding", "combining"])
    parser.add_argument("--frozen", action="store_true", help="train the trunk alone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    options = {"unfreeze": ()} if given.frozen else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.out or Path(scratch)
        if given.only != "combining":
            confounding(given.seeds, folder, options)
        if given.only != "confounding":
            combining(given.seeds, folder, options)


if __name__ == "__main__":
    main()
