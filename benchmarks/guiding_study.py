"""What guiding shows on embedded:null (generated tissue), at default settings.

    python benchmarks/guiding_study.py [--seeds 5] [--only default|confounding|combining|bounds] [--frozen]

Area and count are encouraged and the center discouraged. Differences to the baseline of the same seeds are means over
seeds with 95 % intervals over patients; the internal rows are balanced within center.

``default``: the study as committed (confounding 0.8 of the training rows), and what guiding was meant to reach against
the baseline, each with ✓ or ✗. ``confounding``: the same at 0, 0.3, 0.6 and 0.9. ``combining``: the held-out R² of each
concept when it is encouraged alone and with all others, and with the center discouraged too. ``bounds``: the default
study with other bounds of the learned weights; only where it is named.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import conceptkit as ck

CONFOUNDINGS = (0.0, 0.3, 0.6, 0.9)
BOUNDS = (2, 4, 8)
CONCEPTS = ("area", "count", "contrast")


def difference(record, split, metric):
    """Return one paired difference of the guided network to the baseline."""
    return next(d for d in record.differences if (d.run, d.split, d.metric) == ("guided", split, metric))


def shown(record, split, metric):
    """Return one paired difference as text."""
    one = difference(record, split, metric)
    return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"


def mean(record, run, part, name, metric):
    """Return a figure's mean over seeds."""
    return float(np.mean([getattr(r, part)[name][metric] for r in record.runs if r.name == run]))


def heading(what):
    """Print the names of a row's cells."""
    names = ("AUC external", "AUC internal", "R² area", "R² count", "center, linear", "center, MLP")
    print(f"{what:12s} {' '.join(f'{name:24s}' for name in names)} baseline → guided: external, internal, center")


def guided(what, study, seeds, out, options):
    """Guide, print a row of differences, and return the record."""
    start = time.perf_counter()
    record = ck.run_guide(
        study, encourage=["area", "count"], discourage=["center"], seeds=range(seeds), **options, out=out
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
    print(f"{what:12s} {' '.join(f'{c:24s}' for c in cells)} {levels}  {took:.0f} s", flush=True)
    return record


def default(seeds, folder, options):
    """Print what guiding does to the study as committed, and what it was meant to do."""
    heading("confounding")
    record = guided("default", ck.embedded_study("null"), seeds, folder / "default", options)
    where = record.evaluated_on
    chance = mean(record, "guided", "leakage", "center", "chance")
    far = [abs(mean(record, name, "leakage", "center", "linear") - chance) for name in ("baseline", "guided")]
    meant = {
        "external AUC above the baseline's, the interval leaves 0 out": difference(record, "external", "auc").low > 0,
        "R² of area and count not below the baseline's": min(
            difference(record, where, f"probe:{name}").mean for name in ("area", "count")
        )
        >= 0,
        "a fresh linear probe reads the center nearer to chance": far[1] < far[0],
        "internal AUC no more than 0.01 lower": difference(record, "internal", "auc").mean >= -0.01,
    }
    for words, reached in meant.items():
        print(f"  {'✓' if reached else '✗'} {words}", flush=True)


def confounding(seeds, folder, options):
    """Print the curve over confounding."""
    heading("confounding")
    for value in CONFOUNDINGS:
        guided(
            f"{value:g}", ck.embedded_study("null", confounding=value), seeds, folder / f"confounding-{value}", options
        )


def bounds(seeds, folder, options):
    """Print what the bound of the learned weights matters."""
    heading("bound")
    for value in BOUNDS:
        weighting = {"weighting": f"uncertainty-bounded:{value}"}
        guided(f"{value}", ck.embedded_study("null"), seeds, folder / f"bound-{value}", {**options, **weighting})


def combining(seeds, folder, options):
    """Print each concept's R² alone, with the others, and with the center discouraged."""
    study = ck.embedded_study("null")
    found = {}
    for concept in CONCEPTS:
        record = ck.run_guide(
            study, encourage=[concept], discourage=[], seeds=range(seeds), **options, out=folder / f"alone-{concept}"
        )
        found[concept, "baseline"] = mean(record, "baseline", "concepts", concept, "probe")
        found[concept, "alone"] = mean(record, "guided", "concepts", concept, "probe")
    for name, discourage in (("all", []), ("all −center", ["center"])):
        record = ck.run_guide(
            study,
            encourage=list(CONCEPTS),
            discourage=discourage,
            seeds=range(seeds),
            **options,
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


PARTS = {"default": default, "confounding": confounding, "combining": combining, "bounds": bounds}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="pairs of networks per row; 5")
    parser.add_argument("--only", choices=PARTS, help="one part; without it all but bounds")
    parser.add_argument("--frozen", action="store_true", help="train the trunk alone")
    parser.add_argument("--out", type=Path, help="folder to keep the runs in")
    given = parser.parse_args()
    options = {"unfreeze": ()} if given.frozen else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.out or Path(scratch)
        for name in [given.only] if given.only else [name for name in PARTS if name != "bounds"]:
            PARTS[name](given.seeds, folder, options)


if __name__ == "__main__":
    main()
