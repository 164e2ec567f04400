"""Wild input for hard_use.py: seeded files and options, most of them broken, and what a command may make of each."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hard_use_case import (
    NASTY,
    Case,
    Random,
    _all_images,
    _all_rows,
    _all_slides,
    _csv_text,
    _masks,
    _measured_rows,
    _mutated,
    _probed_rows,
    _table_kept,
    _take,
    _write_csv,
    mutate,
    odd_image,
    png_of,
)
from hard_use_files import checkpoints, hdf5, heaps, parquet, records, stores, studies, weights


def images(case: Case, bench: Path, rng: Random) -> None:
    """One broken image or mask among three, measured or extracted."""
    _take(case, bench, *(f"{k}.{kind}" for k in range(3) for kind in ("jpg", "png", "tif")), *_masks())
    kind = str(rng.choice(["jpg", "png", "tif"]))
    names = [f"{k}.{kind}" for k in range(3)]
    what = rng.integers(0, 10)
    if what < 5:
        _mutated(case, bench, names[0], rng)
    elif what == 5:
        (case.given / names[0]).write_bytes(
            png_of(*[(30_000, 30_000), (1, 2**31 - 1), (13_000, 13_000)][rng.integers(3)])
        )
    elif what == 6:
        shutil.copy(bench / f"1.{rng.choice(['jpg', 'png', 'tif'])}", case.given / names[0])  # another kind's name
    elif what == 7:
        odd_image(case.given / "0.png", rng)
        names[0] = "0.png"
    else:
        _mutated(case, bench, "0-mask.png", rng)
    with_masks = what > 7 or rng.random() < 0.5
    rows = [["image", "patient", "mpp", *(["mask"] if with_masks else [])]]
    for k, name in enumerate(names):
        rows.append([name, f"p{k}", "0.25", *([f"{k}-mask.png"] if with_masks else [])])
    _write_csv(case.given / "images.csv", rows)
    if rng.random() < 0.3:
        case.argv = [
            "extract",
            "--model",
            "mini_inception",
            "--layer",
            "mixed0",
            "--table",
            str(case.given / "images.csv"),
        ]
        case.argv += ["--out", str(case.out / "s.h5"), "--on-error", "skip", "--device", "cpu", "--json", "-"]
        case.check = lambda out: _all_rows(json.loads(out), 3)
    else:
        case.argv = ["measure", str(case.given / "images.csv"), "--out", str(case.out / "t.csv"), "--patch-size", "32"]
        case.argv += ["--on-error", str(rng.choice(["skip", "fail"])), "--workers", "1", "--json", "-"]
        if rng.random() < 0.2:
            case.argv += ["--nuclei", "hematoxylin"]
        case.check = lambda out: _all_images(case, json.loads(out), 3)


def slides(case: Case, bench: Path, rng: Random) -> None:
    """A broken slide beside a good one."""
    what = rng.integers(0, 6)
    if what < 4:
        _mutated(case, bench, "slide.svs", rng, as_name="bad.svs")
    elif what == 4:
        (case.given / "bad.svs").write_bytes((bench / "1.tif").read_bytes())
    else:
        (case.given / "bad.svs").write_bytes(png_of(30_000, 30_000))
    good = bench / "slide.svs"
    case.argv = ["tile", str(case.given / "bad.svs"), str(good), "--out", str(case.out / "t.csv"), "--size", "512"]
    case.argv += ["--export", str(rng.choice(["none", "png", "h5"])), "--workers", "1", "--json", "-"]
    if rng.random() < 0.3:
        case.argv += ["--mpp", str(rng.choice(["0.5", "-1", "nan", "inf", "0", "1e-9", "1e9"]))]
    if rng.random() < 0.3:
        case.argv += ["--tile-mpp", str(rng.choice(["0.5", "2", "-1", "nan", "1e9", "1e-9"]))]
    case.check = lambda out: _all_slides(case, json.loads(out), ["bad", "slide"])


def annotations(case: Case, bench: Path, rng: Random) -> None:
    """Broken XML or GeoJSON."""
    kind = str(rng.choice(["xml", "geojson"]))
    path = case.given / f"slide.{kind}"
    text = (bench / path.name).read_text()
    what = rng.integers(0, 10)
    if what < 4:
        _mutated(case, bench, path.name, rng)
    elif what < 6:  # another number
        number = str(rng.choice(["1500", "1400", "1600", "1700"]))
        other = str(rng.choice(["nan", "NaN", "inf", "Infinity", "1e999", "-1e30", '"a"', "null", "1,5", "9" * 400]))
        path.write_text(text.replace(number, other.strip('"') if kind == "xml" else other, 1))
    elif what == 6:
        deep = 200_000
        path.write_text("<a>" * deep if kind == "xml" else "[" * deep)
    elif what == 7:
        entities = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10 if k else "lol" * 10}">' for k in range(12))
        outside = '<!ENTITY x SYSTEM "file:///etc/passwd">'
        body = text.replace('Name="a"', 'Name="a">&e11;&x;</Annotation><Annotation Name="b"')
        path.write_text(f"<!DOCTYPE a [{entities}{outside}]>{body}" if kind == "xml" else '{"features": [null, 3, {}]}')
    elif what == 8:
        names = {"Polygon": "Circle", "ASAP_Annotations": "b"} if kind == "xml" else {"Polygon": "Circle"}
        for old, new in names.items():
            if rng.random() < 0.6:
                text = text.replace(old, new)
        path.write_text(text)
    else:
        path.write_text(text.replace("100", "700"))
    case.argv = ["tile", str(bench / "slide.svs"), "--out", str(case.out / "t.csv"), "--size", "512", "--json", "-"]
    case.argv += ["--annotations", str(case.given), "--workers", "1"]
    case.check = lambda out: _all_slides(case, json.loads(out), ["slide"])


def tables(case: Case, bench: Path, rng: Random) -> None:
    """A patch table as spreadsheets, people and accidents leave it."""
    _take(case, bench, "patches.h5", "features.npy")
    rows = list(csv.reader((bench / "patches.csv").open(newline="")))
    header = rows[0]
    options: dict[str, Any] = {}
    text: str | None = None
    for _ in range(int(rng.integers(1, 3))):
        what = rng.integers(0, 16)
        column = int(rng.integers(0, len(header)))
        line = int(rng.integers(1, len(rows)))
        odd = str(rng.choice(NASTY))
        if what == 0:
            options["encoding"] = str(rng.choice(["utf-8-sig", "utf-16", "latin-1", "cp1252"]))
            rows[line][-1:] = ["Zürich"]
        elif what == 1:
            options["delimiter"] = str(rng.choice([";", "\t", "|"]))
        elif what == 2:
            place = header.index("count") if "count" in header else column
            for row in rows[1:]:
                row[place:] = [cell.replace(".", ",") if k == 0 else cell for k, cell in enumerate(row[place:])]
        elif what == 3:
            header[column] = str(rng.choice(header))
        elif what == 4:
            header[column] = odd
        elif what in (5, 6, 7):
            rows[line][column : column + 1] = [odd]
        elif what == 8:
            rows[line][column : column + 1] = ["x" * 10**6]
        elif what == 9:
            rows[line] += ["more"] * int(rng.integers(1, 4))
        elif what == 10:
            rows[line] = rows[line][: int(rng.integers(0, len(header)))]
        elif what == 11:
            text = _csv_text(rows, options)
            at = int(rng.integers(0, len(text)))
            text = text[:at] + str(rng.choice(["\0", '"', "\r", "\x1a", "\x0b", "\u2028"])) + text[at:]
        elif what == 12:
            for row in rows[1:]:
                row[column : column + 1] = [odd]
        elif what == 13:
            for row in rows:
                del row[column : column + 1]
            header = rows[0]
        elif what == 14:
            rows.insert(line, list(rows[line]))
        else:
            place = header.index("count") if "count" in header else column
            number = rng.choice(
                ["inf", "-inf", "1e400", "nan", "1e-400", "9" * 30, "Infinity", "-0", "+5", " 5 ", "5 µm"]
            )
            rows[line][place : place + 1] = [str(number)]
    path = case.given / "patches.csv"
    body = text if text is not None else _csv_text(rows, options)
    content = body.encode(options.get("encoding", "utf-8"), "replace")
    path.write_bytes(mutate(content, rng) if rng.random() < 0.1 else content)
    _use_table(case, path, rng)


def _use_table(case: Case, path: Path, rng: Random) -> None:
    """Probe, split or measure a table."""
    command = rng.integers(0, 4)
    if command < 2:
        case.argv = ["probe", "--table", str(path), "--features", str(case.given / "features.npy"), "--folds", "2"]
        case.argv += ["--permutations", "0", "--out", str(case.out / "run"), "--json", "-"]
        case.check = lambda out: _table_kept(path) or _probed_rows(path, json.loads(out))
    elif command == 2:
        case.argv = ["splits", "--table", str(path), "--json", "-"]
        case.check = lambda out: _table_kept(path)
    else:
        case.argv = [
            "measure",
            str(path),
            "--out",
            str(case.out / "t.csv"),
            "--measure",
            "jpeg_quality,blur,brightness",
        ]
        case.argv[-1] = "nuisances"
        case.argv += ["--on-error", "skip", "--workers", "1", "--json", "-"]
        case.check = lambda out: _table_kept(path) or _measured_rows(path, case, json.loads(out))


def image_lists(case: Case, bench: Path, rng: Random) -> None:
    """A list of images whose cells are names from elsewhere; what is found is kept as files."""
    _take(case, bench, "0.png", "1.png", "2.png")
    rows = [["image", "image_id", "patient", "mpp", "note"]]
    rows += [[f"{k}.png", f"i{k}", f"p{k}", "0.25", "a"] for k in range(3)]
    for _ in range(int(rng.integers(1, 4))):
        rows[int(rng.integers(0, 4))][int(rng.integers(0, 5))] = str(rng.choice(NASTY))
    _write_csv(case.given / "images.csv", rows)
    case.argv = ["measure", str(case.given / "images.csv"), "--out", str(case.out / "t.csv"), "--patch-size", "32"]
    case.argv += ["--nuclei", "hematoxylin", "--masks-out", str(case.out / "masks"), "--on-error", "skip"]
    case.argv += ["--workers", "1", "--json", "-"]
    case.check = lambda out: _all_images(case, json.loads(out), 3)


def options(case: Case, bench: Path, rng: Random) -> None:
    """A good call with one or two options that are not."""
    import typer

    from conceptkit.cli import app

    study = ["--study", str(bench / "conceptkit.toml")]
    checkpoint = str(bench / "guided" / "checkpoints" / "guided-seed0")
    good = {
        "probe": [*study, "--features", str(bench / "features.npy"), "--permutations", "0", "--folds", "2"],
        "guide": [*study, "--unfreeze", "none", "--trunk", "8", "--epochs", "1", "--warmup", "0", "--dry-run"],
        "predict": [checkpoint, "--table", str(bench / "patches.csv"), "--out", str(case.out / "p.csv")],
        "predictivity": [*study, "--concept", "count", "--seeds", "1"],
        "attribute": [*study, "--layer", "mixed0", "--concept", "count"],
        "audit": [checkpoint, *study, "--concept", "count"],
        "tile": [str(bench / "slide.svs"), "--out", str(case.out / "t.csv"), "--size", "512"],
        "measure": [str(bench / "patches.csv"), "--out", str(case.out / "m.csv"), "--measure", "nuisances"],
        "splits": study,
        "extract": [*study, "--layer", "mixed0", "--out", str(case.out / "s.h5")],
        "layers": ["--model", "mini_inception", "--size", "64"],
        "report": [str(bench / "probed"), "-o", str(case.out / "page.html")],
        "init": [str(case.out / "new")],
        "status": [str(bench / "probed")],
    }
    command = str(rng.choice(sorted(good)))
    argv = list(good[command])
    known = [
        p for p in typer.main.get_command(app).commands[command].params if p.opts and p.param_type_name == "option"
    ]
    if command in ("probe", "guide", "predictivity", "attribute", "audit"):
        argv += ["--out", str(case.out / "run")]
    for _ in range(int(rng.integers(1, 3))):
        option = known[int(rng.integers(0, len(known)))]
        if option.name in ("device", "debug", "json", "help", "engine", "devices", "nodes"):
            continue
        argv.append(str(rng.choice([*option.opts, *option.secondary_opts])))
        if not option.is_flag:
            argv.append(
                str(rng.choice([*NASTY, "0", "1", "2", "-5", "99999999999999999999", "1,2", ",", ";", "a=b", "count"]))
            )
    # A place that the user names may be written to: it has to lie where the campaign works.
    case.argv = [command, *(str(case.out / "absolute") if a == "/outside/absolute" else a for a in argv)]
    case.notes.append("places named by the user")


FAMILIES: dict[str, tuple[Callable[[Case, Path, Random], None], int]] = {
    "options": (options, 190),
    "images and masks": (images, 90),
    "lists of images": (image_lists, 40),
    "slides": (slides, 40),
    "annotations": (annotations, 50),
    "tables (CSV)": (tables, 130),
    "tables (Parquet)": (parquet, 30),
    "study files": (studies, 70),
    "stores": (stores, 60),
    "features and pixels (HDF5, npy)": (hdf5, 60),
    "weights": (weights, 40),
    "checkpoints": (checkpoints, 60),
    "run folders": (records, 70),
    "heaps of HDF5": (heaps, 60),
}
"""Name → how a case is made, and how many are"""
