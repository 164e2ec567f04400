"""Write pages of the documentation as notebooks: ``python docs/notebooks.py`` after a page has changed.

Blocks that a page runs become cells, ``shell`` with ``%%bash``; everything else becomes text. Outputs are not kept.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]

NOTEBOOKS = {
    "images_and_network": "tutorials/own-patches",
    "embeddings": "tutorials/embeddings",
    "slides": "tutorials/slides-to-concepts",
    "encoder_and_hospitals": "tutorials/encoder-and-hospitals",
    "bottleneck": "tutorials/bottleneck",
}
"""Notebook in ``examples`` → its page in ``docs``"""

_BLOCK = re.compile(r"^```\{run\} (\w+)\n((?::\w+:[^\n]*\n)*)(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def notebook(page: str) -> nbformat.NotebookNode:
    """Return a page of ``docs``, such as ``tutorials/embeddings``, as a notebook without outputs."""
    source = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell(f"*From docs/{page}.md. Run it in an empty folder: it writes files there.*")]
    end = 0
    for block in _BLOCK.finditer(source):
        cells.append(v4.new_markdown_cell(_links(source[end : block.start()], page)))
        options = dict(re.findall(r"^:(\w+): *(.*)$", block[2], re.M))
        code = block[3].strip()
        if code:
            cells.append(v4.new_code_cell(f"%%bash\n{code}" if block[1] == "shell" else code))
        shown = [f"![{options['alt']}]({name})" for name in options.get("pictures", "").split()]
        if "report" in options:
            shown.append(f"[Open the page]({options['report']})")
        cells.append(v4.new_markdown_cell("\n\n".join(shown)))
        end = block.end()
    cells.append(v4.new_markdown_cell(_links(source[end:], page)))
    kept = [cell for cell in cells if cell.source.strip()]
    for i, cell in enumerate(kept):
        cell.source, cell.id = cell.source.strip(), f"cell-{i + 1}"  # the same bytes every time
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = v4.new_notebook(cells=kept, metadata=kernel)
    nbformat.validate(made)
    return made


def _links(text: str, page: str) -> str:
    """Make links that are relative to the page relative to ``examples``; those to references lead to their page."""
    folder = (ROOT / "docs" / page).parent

    def there(match: re.Match[str]) -> str:
        target = os.path.normpath(folder / match[1])
        return f"]({Path(os.path.relpath(target, ROOT / 'examples')).as_posix()}"

    return _LINK.sub(there, text).replace("](#", "](../docs/references.md#")


if __name__ == "__main__":
    for name, page in NOTEBOOKS.items():
        nbformat.write(notebook(page), ROOT / "examples" / f"{name}.ipynb")
