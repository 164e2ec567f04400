"""Commands called in this process."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from conceptkit.cli import app


def call(*arguments):
    """Run a command in this process; a traceback of it fails the test."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def sentence(result):
    """Return the one sentence of a command that was called wrongly."""
    assert result.exit_code == 2, result.stderr
    # The sentence on the cache names a folder, whose length decides how many lines it takes.
    said = re.sub(r"^Activations will take.*?\.$\n", "", result.stdout, flags=re.M | re.S).splitlines()
    assert len(said) <= 1, result.stdout  # whose data was meant
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    return lines[0].removeprefix("Error: ")


def contents(folder):
    """Return every file below ``folder`` with its bytes."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
