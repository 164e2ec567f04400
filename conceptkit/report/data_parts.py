"""The data on the page: patches and patients per split, concepts by class and center, colours."""

from __future__ import annotations

import numpy as np

from conceptkit.report.data_figures import center_figures, class_figures, left_out_of_figures, levels, sample_figure
from conceptkit.report.part import Part, table_part
from conceptkit.report.run_context import Context
from conceptkit.report.table import Table, make_table
from conceptkit.report.wording import groups_word, natural

SPREAD = (
    "Rows that the run used, training rows among them. Where classes or centers differ here, a network can tell them "
    "apart by this concept only."
)


def data_parts(context: Context | None, group: str | None, seen: set[str]) -> list[Part]:
    """Return the parts on the data of a run; none for a run that saved no such file.

    Parameters
    ----------
    seen : parts that other sections of the page show, which are not repeated; those of this section are added
    """
    if context is None:
        return []
    parts = []
    table = split_table(context, group)
    if _is_new(table.frame.to_csv(), seen):
        parts.append(table_part(table))
    if context.samples is not None and context.samples.counts.any():
        most = int(context.samples.n_patches.max(initial=0))
        text = (
            f"Patches drawn at random, and the colours of up to {most} patches of each center: share of pixels by "
            "brightness in red, green and blue (0 to 255)."
        )
        drawing = sample_figure(context.samples)
        if _is_new(drawing.alt, seen):
            parts.append(Part(title="Samples and colours", text=text, drawings=[drawing]))
    for title, drawings in (
        ("Concepts by class", class_figures(context)),
        ("Concepts by center and class" if levels(context.labels) else "Concepts by center", center_figures(context)),
    ):
        fresh = [drawing for drawing in drawings if _is_new(drawing.alt, seen)]
        if fresh:
            text = f"{SPREAD} {left_out_of_figures(context)}".strip()
            parts.append(Part(title=title, text=text, drawings=fresh))
    return parts


def _is_new(content: str, seen: set[str]) -> bool:
    new = content not in seen
    seen.add(content)
    return new


def split_table(context: Context, group: str | None) -> Table:
    """Return patches by split, center and class, and their patients (the paper's Tables 1 and 2)."""
    patients = groups_word(group)
    classes = levels(context.labels)
    rows = []
    for split in dict.fromkeys(context.splits.tolist()):
        of_split = context.splits == split
        centers = sorted(set(context.centers[of_split].tolist()), key=natural)
        for center in [*centers, "all"] if len(centers) > 1 else centers:
            here = of_split if center == "all" else of_split & (context.centers == center)
            row: dict[str, object] = {"split": split, "center": center, "patches": int(here.sum())}
            row |= {_class(c): int((here & (context.labels == c)).sum()) for c in classes}
            row[patients] = len(np.unique(context.groups[here]))
            rows.append(row)
    return make_table(
        "splits",
        "Patches of the run",
        "Rows that the run used. Where a class is missing at a center, or occurs at one center only, a network can "
        "recognise the class by the center.",
        rows,
        without={patients} if group is None else (),
    )


def _class(name: str) -> str:
    return f"of {name}"
