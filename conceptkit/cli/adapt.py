"""The commands ``conceptkit adapt …``: published layouts of data to a patch table, one command each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from conceptkit.cli.console import reading_console, sentences, write_json_result
from conceptkit.cli.options import DebugOption, JsonOption
from conceptkit.errors import InputError, check_place

if TYPE_CHECKING:
    from conceptkit.pathology.adapters import Adapted

adapt = typer.Typer(
    name="adapt",
    help="Make a patch table of a published data set's own layout.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

OutTable = Annotated[str, typer.Option("--out", "-o", help="The patch table to write, .csv or .parquet.")]


def _write(out: str, make: Callable[[Path], Adapted], json: str | None, debug: bool) -> None:
    with sentences(debug), reading_console(json) as console:
        from conceptkit.pathology.measuring import check_out, write_table

        path = Path(out)
        check_out(path)
        check_place("out", path)
        adapted = make(path)
        write_table(adapted.table, path)
        for note in adapted.notes:
            console.print(escape(note), style="dim")
        console.print(f"{len(adapted.table)} patches written to {escape(out)}")
        write_json_result(
            json,
            {
                "schema": "conceptkit/adapt/1",
                "study": path.stem,
                "rows_written": len(adapted.table),
                "columns": [str(name) for name in adapted.table.columns],
                "path": out,
                "notes": list(adapted.notes),
            },
        )


@adapt.command()
def classes(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Holds one folder of images per class.")],
    out: OutTable,
    mpp: Annotated[float | None, typer.Option("--mpp", help="Micrometres per pixel of all images.")] = None,
    patient: Annotated[
        str | None,
        typer.Option("--patient", help="Regular expression of the patient in file names, e.g. '^([^_]+)_'."),
    ] = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Take images in one folder per class: the folder is the label."""

    def make(path: Path) -> Adapted:
        from conceptkit.pathology.adapters.image_folder import image_folder

        if mpp is not None and not mpp > 0:
            raise InputError(f"mpp: must be above 0, got {mpp}.")
        return image_folder(Path(folder), out=path, mpp=mpp, patient=patient)

    _write(out, make, json, debug)


@adapt.command()
def camelyon(
    tiles: Annotated[str, typer.Argument(metavar="TILES.csv", help="What conceptkit tile made of the slides.")],
    out: OutTable,
    stage_labels: Annotated[
        str | None, typer.Option("--stage-labels", help="Camelyon17's stage_labels.csv.", show_default=False)
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Column with the slide's name.")] = "group",
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Complete tiles of Camelyon16 and 17: patient, center, stage, labels of negative slides."""

    def make(path: Path) -> Adapted:
        from conceptkit.pathology.adapters.camelyon import camelyon as complete
        from conceptkit.tables.patches import load_table

        if path.resolve().parent != Path(tiles).resolve().parent:
            raise InputError(f"out: must lie in the folder of {tiles}, from which its paths are read; got {out}.")
        given = None if stage_labels is None else Path(stage_labels)
        return complete(load_table(Path(tiles)).frame, stage_labels=given, column=column)

    _write(out, make, json, debug)


@adapt.command()
def pannuke(
    folds: Annotated[
        list[str],
        typer.Argument(metavar="FOLDER…", help="Folds in order, each with images.npy, masks.npy, types.npy."),
    ],
    out: OutTable,
    tissue: Annotated[str, typer.Option("--tissue", help="As in types.npy; all for every tissue.")] = "Breast",
    size: Annotated[int, typer.Option("--patch-size", help="Side of a crop, in pixels.")] = 224,
    training: Annotated[int, typer.Option("--training", help="So many of the first folds are for training.")] = 2,
    crop: Annotated[str, typer.Option("--crop", help="The one crop of evaluation rows.")] = "center",
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Cut PanNuke's folds into crops beside the table: nuclei by type, label by neoplastic ones."""

    def make(path: Path) -> Adapted:
        from conceptkit.pathology.adapters.pannuke import pannuke as cut

        return cut(
            {number: Path(folder) for number, folder in enumerate(folds, start=1)},
            out=path,
            tissue=None if tissue == "all" else tissue,
            size=size,
            training=range(1, training + 1),
            evaluation_crop=crop,
        )

    _write(out, make, json, debug)


@adapt.command()
def paper(
    concepts: Annotated[str, typer.Argument(metavar="CONCEPTS.h5", help="The file of concept measures.")],
    out: OutTable,
    lists: Annotated[
        list[str] | None, typer.Option("--list", help="A split list; may be repeated.", show_default=False)
    ] = None,
    patches: Annotated[
        str | None, typer.Option("--patches", help="HDF5 with the patches' pixels.", show_default=False)
    ] = None,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Read the paper's own HDF5 layout: concept file, split lists, pixels."""

    def make(path: Path) -> Adapted:
        from conceptkit.pathology.adapters.paper_hdf5 import paper_table

        pixels = None if patches is None else Path(patches)
        return paper_table(Path(concepts), [Path(name) for name in lists or ()], out=path, patches=pixels)

    _write(out, make, json, debug)


@adapt.command()
def coords(
    files: Annotated[list[str], typer.Argument(metavar="FILE.h5…", help="Files with coords, one per slide.")],
    slides: Annotated[str, typer.Option("--slides", help="Folder that holds the slides, in it or below.")],
    out: OutTable,
    json: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Read the coords files of TRIDENT and CLAM."""

    def make(path: Path) -> Adapted:
        from conceptkit.pathology.adapters.coords import coords_table

        if not Path(slides).is_dir():
            raise InputError(f"slides: must be a folder, got {slides}.")
        return coords_table([Path(name) for name in files], slides=Path(slides), out=path)

    _write(out, make, json, debug)
