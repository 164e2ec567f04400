"""Sphinx directives whose content is read from the package: the files of its rooms, the options of its commands.

```{files}
```
```{options} audit
```
```{encoders}
```

Each object of the API page gets its line of examples.md. ``llms.txt``, an overview of the commands for coding agents,
is written next to the pages.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import conceptkit
from conceptkit.families import ENCODERS
from conceptkit.options import COMMANDS
from conceptkit.options.base import Described, described
from conceptkit.registry import load

PACKAGE = Path(conceptkit.__file__).parent


def files() -> dict[str, list[str]]:
    """Return room → its files; a file that is a room by itself has none."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if path.name == "__init__.py" or room == "__main__":
            continue
        inside = path.relative_to(PACKAGE).with_suffix("").as_posix()
        found.setdefault(room, [])
        if inside != room:
            found[room].append(inside.removeprefix(f"{room}/"))
    return found


class Files(Directive):
    """List the files of every room."""

    def run(self) -> list[nodes.Node]:
        rows = [[[nodes.literal(text=room)], [nodes.Text(", ".join(names))]] for room, names in files().items()]
        return [_table(["room", "files"], rows, [20, 80])]


class Options(Directive):
    """Tabulate the options of every command: spelling, what they do, and default."""

    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for name, place in COMMANDS.items():
            command = load(place)
            rows = [
                [[nodes.literal(text=one.flag_text)], [nodes.Text(one.help_text)], [nodes.Text(one.default_text)]]
                for one in map(_Row, described(command))
            ]
            summary = (command.__doc__ or "").partition("\n\n")[0]
            found.append(
                nodes.rubric(
                    "", "", nodes.literal(text=f"conceptkit {name}"), ids=[f"options-{name.replace(' ', '-')}"]
                )
            )
            found.append(nodes.paragraph("", summary))
            found.append(_table(["option", "", "default"], rows, [25, 60, 15]))
        return found


class Encoders(Directive):
    """Tabulate the encoders that ``--model`` opens by name."""

    def run(self) -> list[nodes.Node]:
        titles = ["--model", "repository", "µm/px", "pixels", "features", "pooling", "licence", "source"]
        rows = []
        for name, one in ENCODERS.items():
            pool = f"needs {one.package}" if one.package else one.pool
            cells = [one.repository, f"{one.mpp:g}", str(one.size), str(one.width), pool, one.licence, one.source]
            rows.append([[nodes.literal(text=name)], *([nodes.Text(cell)] for cell in cells)])
        return [_table(titles, rows, [12, 20, 6, 6, 7, 12, 15, 22])]


def overview() -> str:
    """Return what a coding agent needs: every command with its summary, example and options."""
    lines = [
        f"# conceptkit {conceptkit.__version__}",
        "",
        "> Measure which human concepts a neural network encodes, and retrain it to rely on some and ignore others.",
        "",
        "Scores are held out by patient: give `--group`. Wrong input ends with exit code 2 and one sentence.",
        "`--json -` prints a result as JSON. In Python, the command `probe` is `conceptkit.run_probe`.",
    ]
    for name, place in COMMANDS.items():
        command = load(place)
        lines += ["", f"## conceptkit {name}", "", " ".join(inspect.cleandoc(command.__doc__ or "").split())]
        lines += ["", f"Example: `conceptkit {command.example}`", ""]
        for row in map(_Row, described(command)):
            default = f" Default: {row.default_text}." if row.default_text else ""
            lines.append(f"- `{row.flag_text}`: {' '.join(row.help_text.split())}{default}")
    return "\n".join(lines) + "\n"


@functools.cache
def examples() -> dict[str, str]:
    """Return public object → the first statement of docs/examples.md that uses it."""
    page = (Path(__file__).parent / "examples.md").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        for statement in ast.parse(block).body:
            text = ast.get_source_segment(block, statement) or ""
            for name in re.findall(r"\bck\.(\w+)", text):
                found.setdefault(name, text)
    return found


def _add_example(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Put an object's example below its docstring."""
    package, _, own = name.rpartition(".")
    if package == "conceptkit" and own in (known := examples()):
        lines += ["", ".. rubric:: Example", "", ".. code-block:: python", ""]
        lines += [f"    {line}" for line in known[own].splitlines()] + [""]


def _write_overview(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        (Path(app.outdir) / "llms.txt").write_text(overview(), encoding="utf-8")


class _Row:
    def __init__(self, option: Described) -> None:
        self.flag_text = option.name if option.declared.argument else option.flag
        choices = option.choices()
        self.help_text = option.help.replace("`", "") + (f" One of {', '.join(choices)}." if choices else "")
        default = option.default if option.declared.shown is None else option.declared.shown
        if option.required:
            self.default_text = "required"
        elif default in (None, (), ""):
            self.default_text = ""
        else:
            self.default_text = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _table(titles: list[str], rows: list[list[list[nodes.Node]]], widths: list[int]) -> nodes.table:
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(widths))
    group += nodes.thead("", _row([[nodes.Text(title)] for title in titles]))
    group += nodes.tbody("", *(_row(cells) for cells in rows))
    return nodes.table("", group)


def _row(cells: list[list[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("files", Files)
    app.add_directive("options", Options)
    app.add_directive("encoders", Encoders)
    if "sphinx.ext.autodoc" in app.config.extensions:
        app.connect("autodoc-process-docstring", _add_example, priority=700)  # after napoleon and conf.py
    app.connect("build-finished", _write_overview)
    return {"parallel_read_safe": True}
