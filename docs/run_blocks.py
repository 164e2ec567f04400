"""A Sphinx directive that runs what a tutorial shows, while the page is built, and shows what came out.

    ```{run} shell
    :lines: 12
    conceptkit probe --layer mixed10 --concept count
    ```

``:pictures:`` shows files that the blocks made, ``:from: PAGE`` those that the blocks of another page made, and
``:report:`` puts an HTML page beside the documentation and links it. Pages that show another's pictures are read last.
All blocks of a page share one empty folder and, for ``python``, one namespace. A block that fails, or that takes longer
than ``CONCEPTKIT_DOCS_LIMIT`` seconds (by default 30 minutes), is named by its page and line; ``-W`` then fails the
build. With ``CONCEPTKIT_DOCS_RUN=0`` nothing is run, for those who write.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

GENERATED = "_generated"
"""Folder of the pages in which pictures made by blocks lie"""

REPORTS = "reports"
"""Folder of the built documentation in which pages made by blocks lie"""

LIMIT = 1800.0
"""Seconds that a block may take, unless ``CONCEPTKIT_DOCS_LIMIT`` says otherwise"""

_folders: dict[str, Path] = {}
_names: dict[str, dict[str, Any]] = {}


class Run(Directive):
    """Show code, run it, and show its output."""

    required_arguments = 1  # shell, python, or picture: one that an earlier block made
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "lines": directives.nonnegative_int,
        "pictures": directives.unchanged,
        "from": directives.unchanged_required,
        "report": directives.unchanged_required,
        "draws": directives.unchanged_required,  # the functions that drew the pictures, for the gallery's test
        "alt": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        language, code = self.arguments[0], "\n".join(self.content)
        shown: list[nodes.Node] = [_block(code, "bash" if language == "shell" else "python")] if code else []
        if os.environ.get("CONCEPTKIT_DOCS_RUN") == "0":
            return shown
        folder = _folders.setdefault(env.docname, Path(tempfile.mkdtemp(prefix="conceptkit-docs-")))
        start = time.perf_counter()
        try:
            with _limited():
                output = _RUN[language](code, folder, env.docname) if code else ""
        except Exception as error:  # it is the page's own code
            reason = str(error) or type(error).__name__
            raise self.error(f"the block at line {self.lineno} of {env.docname} failed: {reason}") from None
        logger.info("%s:%d ran in %.1f s", env.docname, self.lineno, time.perf_counter() - start)
        output = output.replace(str(folder) + os.sep, "")
        lines = [line.rstrip() for line in output.rstrip().splitlines()]
        most = self.options.get("lines", 40)
        if len(lines) > most:
            lines = [*lines[:most], "…"]
        if lines and most:
            shown.append(_block("\n".join(lines), "text"))
        for name in self.options.get("pictures", "").split():
            shown.append(self._picture(folder, name, env))
        if "report" in self.options:
            shown.append(self._report(folder / self.options["report"], env))
        return shown

    def _picture(self, folder: Path, name: str, env: Any) -> nodes.Node:
        place = Path(env.srcdir) / GENERATED / self.options.get("from", env.docname).replace("/", "-")
        kept = place / Path(name).name
        made = kept if "from" in self.options else folder / name
        if not made.exists():
            raise self.error(f"the block at line {self.lineno} of {env.docname} failed: no block made {name}")
        if made != kept:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, kept)
        return nodes.image(uri=f"/{kept.relative_to(env.srcdir).as_posix()}", alt=self.options["alt"])

    def _report(self, made: Path, env: Any) -> nodes.Node:
        """Copy a page to where the documentation is served, and link it."""
        name = env.docname.replace("/", "-") + ".html"
        place = Path(env.app.outdir) / REPORTS
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, place / name)
        uri = "../" * env.docname.count("/") + f"{REPORTS}/{name}"
        return nodes.paragraph("", "", nodes.reference("", "Open the page", refuri=uri, internal=False))


def _block(text: str, language: str) -> nodes.Node:
    return nodes.literal_block(text, text, language=language)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise :class:`TimeoutError` in a block that takes too long; where there are no alarms, blocks have no limit."""
    stated = os.environ.get("CONCEPTKIT_DOCS_LIMIT", "")
    try:
        seconds = float(stated or LIMIT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"CONCEPTKIT_DOCS_LIMIT must be a number of seconds above 0, got {stated!r}")
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s; CONCEPTKIT_DOCS_LIMIT sets another limit")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _shell(code: str, folder: Path, page: str) -> str:
    own = str(Path(sys.executable).parent)  # where the command lies that belongs to this Python
    environment = {**os.environ, "PATH": own + os.pathsep + os.environ.get("PATH", ""), "NO_COLOR": "1"}
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with what the shell started, which has the output open too
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}\n{code}\n{output[-2000:]}")
    return output


def _python(code: str, folder: Path, page: str) -> str:
    """Run statements; the value of a last expression is shown as in a notebook."""
    names = _names.setdefault(page, {"__name__": "__main__"})
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        exec(compile(tree, page, "exec"), names)  # the page's own code, shown to its reader
        if last is not None:
            value = eval(compile(ast.Expression(last.value), page, "eval"), names)
            if value is not None:
                print(value)
    return out.getvalue()


_RUN = {"shell": _shell, "python": _python}


def _read_last(app: Sphinx, env: Any, names: list[str]) -> None:
    """Read the pages that show pictures of other pages after these."""
    names.sort(key=lambda name: "\n:from: " in Path(env.doc2path(name)).read_text(encoding="utf-8"))


def _clean(app: Sphinx, error: Exception | None) -> None:
    for folder in _folders.values():
        shutil.rmtree(folder, ignore_errors=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("run", Run)
    app.connect("env-before-read-docs", _read_last)
    app.connect("build-finished", _clean)
    return {"parallel_read_safe": False}
