"""The report's tables and figures as files: LaTeX that compiles as it is meant, CSV that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from report_records import NASTY, guide_record, probe_record, saved, write_context, write_embeddings

from conceptkit import write_report
from conceptkit.errors import InputError
from conceptkit.report.files import slug
from conceptkit.report.table import Table
from conceptkit.report.table_files import harmless, latex_text, to_csv, to_latex

ODD = [NASTY, "a_b", "100 %", "=cmd()", "+1", "-2", "@x", "\tcmd", "$x^2$", "\\input{/etc/passwd}", "#~&|"]
ODD += ["a\nb", "R²"]


def odd_table() -> Table:
    frame = pd.DataFrame({"concept": ODD, "=score": range(len(ODD)), "R²_x": [-0.5] * len(ODD)})
    return Table(name="odd", title="A_title", caption="100 % of \\them", frame=frame)


def visible(latex: str) -> str:
    """Return what is left of LaTeX when its known commands are taken away."""
    for command in (r"\\textbackslash\{\}", r"\\text[a-z]+\{[^}]*\}", r"\\[{}$&#_%]", r"\$[^$]*\$"):
        latex = re.sub(command, "", latex)
    return latex.replace("{[}", "[").replace("{]}", "]")


@pytest.mark.parametrize("text", ODD)
def test_nothing_in_a_name_is_a_command_of_latex(text: str) -> None:
    left = visible(latex_text(text))
    assert not set(left) & set("\\{}$&#_%^~<>|\n\t")


def test_the_control_finds_commands() -> None:
    assert set(visible("a_b")) & set("_")
    assert "\\" in visible(r"\input{x}")


def test_a_latex_table_has_the_cells_that_people_read() -> None:
    text = to_latex(odd_table(), label="odd")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(ODD)
    for line in body:
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == 2
        assert "$-$0.50" in line
    assert r"\begin{tabular}{lrr}" in text
    assert r"\label{tab:odd}" in text
    assert text.count(r"\begin{") == text.count(r"\end{")


EVERYDAY = [
    "µm² ≥ 3 ≤ α σ – ρ Δ χ₂",
    '% _ & # $ \\ ~ ^ { } " ` | < >',
    "a--b…",
    "café, Łódź, Ø, ß",
    "[x]\u2009\u202f×\u2011→",
    NASTY,
]


def compiled(folder: Path, *tables: str) -> subprocess.CompletedProcess[bytes]:
    page = [
        r"\documentclass{article}\usepackage{booktabs,graphicx,textcomp}\begin{document}",
        *tables,
        r"\end{document}",
    ]
    (folder / "page.tex").write_text("\n".join(page), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_tables_compile_as_their_first_line_says(tmp_path: Path) -> None:
    odd = pd.DataFrame({name: [*EVERYDAY, *ODD] for name in EVERYDAY})
    texts = [to_latex(odd_table(), label="a"), to_latex(Table(name="b", title="B", caption="", frame=odd), label="b")]
    run, name = saved(guide_record(count=NASTY), tmp_path / "guide"), tmp_path / "latex"
    write_report([run, saved(probe_record(), tmp_path / "probe")], tmp_path / "page.html", latex=name)
    texts += [path.read_text(encoding="utf-8") for path in sorted(name.iterdir())]
    done = compiled(tmp_path, *texts)
    assert done.returncode == 0, done.stdout.decode("latin-1")[-2000:]
    assert compiled(tmp_path, "a_b").returncode != 0  # the control: a name that nobody escaped


def test_a_csv_holds_numbers_in_full_and_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(odd_table()), newline="")))
    assert rows[0] == ["concept", "'=score", "R²_x"]
    assert [row[0] for row in rows[1:]] == [harmless(name) for name in ODD]
    assert [row[2] for row in rows[1:]] == ["-0.5"] * len(ODD)  # a number is no formula
    assert not [row[0] for row in rows if row[0].startswith(("=", "+", "-", "@", "\t"))]
    assert harmless("count") == "count"  # the control: an honest name stays as it is


def test_a_report_writes_every_table_and_figure(tmp_path: Path) -> None:
    probe = saved(probe_record(), tmp_path / "probe")
    guide = saved(guide_record(count=NASTY), tmp_path / "guide")
    write_embeddings(guide)
    write_context(guide)
    places = {name: tmp_path / name for name in ("latex", "csv", "figures")}
    write_report([probe, guide], tmp_path / "page.html", **places)
    tables = {p.stem for p in places["latex"].iterdir()}
    assert tables == {p.stem for p in places["csv"].iterdir()}
    assert tables >= {"probe-probe", "guide-concepts", "guide-leakage", "guide-main-task", "guide-predictions"}
    figures = {p.name for p in places["figures"].iterdir()}
    assert {p.removesuffix(".svg") for p in figures if p.endswith(".svg")} == {
        p.removesuffix(".pdf") for p in figures if p.endswith(".pdf")
    }
    assert figures >= {"probe-probe-1.pdf", "guide-samples.svg", "guide-by-center-1.svg", "guide-calibration-1.pdf"}
    for path in places["figures"].iterdir():
        assert path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"<?xml")
    assert "<script" not in "".join(p.read_text() for p in places["figures"].glob("*.svg"))
    numbers = pd.read_csv(places["csv"] / "guide-concepts.csv")
    assert numbers["difference"].iloc[0] == pytest.approx(0.05)


def test_places_that_cannot_be_written_are_told_before_the_work(tmp_path: Path) -> None:
    run = saved(probe_record(), tmp_path / "probe")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"csv: .*file is a file; name a folder"):
        write_report([run], tmp_path / "page.html", csv=tmp_path / "file")
    with pytest.raises(InputError, match="latex: "):
        write_report([run], tmp_path / "page.html", latex=tmp_path / "file" / "deep")
    assert not (tmp_path / "page.html").exists()


def test_names_of_files_are_plain() -> None:
    assert slug("Probe: layer/../0 <x>") == "probe-layer-..-0-x"
    assert slug("核") == "run"
    assert "/" not in slug("a/b")
