"""Measure how a package is built: files, lines, long functions, many parameters, imports inside functions."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

COLUMNS = (
    "package",
    "files",
    "lines",
    "over 60 lines",
    "over 12 parameters",
    "most parameters",
    "imports in functions",
)


def measure(package: Path) -> tuple[str | int, ...]:
    """Return the row of a package's folder."""
    files = [path for path in sorted(package.rglob("*.py")) if "tests" not in path.relative_to(package).parts]
    lines = long = wide = most = inside = 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args
            parameters = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            long += (node.end_lineno or 0) - node.lineno + 1 > 60
            wide += parameters > 12
            most = max(most, parameters)
            inside += sum(isinstance(below, ast.Import | ast.ImportFrom) for below in _own(node))
    return package.name, len(files), lines, long, wide, most, inside


def _own(function: ast.AST) -> list[ast.AST]:
    """Return the nodes of a function without those of functions in it, which are counted by themselves."""
    found: list[ast.AST] = []
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node)
            todo += ast.iter_child_nodes(node)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="*", type=Path, default=[Path(__file__).parents[1] / "conceptkit"])
    print("| " + " | ".join(COLUMNS) + " |")
    print("| " + " | ".join("---" for _ in COLUMNS) + " |")
    for package in parser.parse_args().packages:
        print("| " + " | ".join(f"{value:,}" if isinstance(value, int) else value for value in measure(package)) + " |")


if __name__ == "__main__":
    main()
