"""The report's tables as files for a paper: LaTeX with booktabs, and CSV."""

from __future__ import annotations

import re
import unicodedata

import pandas as pd

from conceptkit.report.table import Table, numeric_columns, shown

_GREEK = "αβγδεζηθικλμνξπρσςτυφχψωΓΔΘΛΞΠΣΥΦΨΩ"


def _greek(letter: str) -> str:
    """Return LaTeX's command for a letter, from its name in Unicode."""
    size, name = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (?:FINAL )?(\w+)", unicodedata.name(letter)).groups()  # type: ignore[union-attr]
    name = name.lower().replace("lamda", "lambda")
    name = f"var{name}" if letter == "ς" else name
    return "\\" + (name if size == "SMALL" else name.title())


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl is not there in LaTeX's default font encoding
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after \\ a bracket would be read as its argument
    "]": "{]}",
    "−": r"$-$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "√": r"$\surd$",
    "∂": r"$\partial$",
    "∆": r"$\Delta$",
    "∑": r"$\sum$",
    "′": r"$\prime$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "–": "--",
    "…": r"\ldots{}",
    "µ": r"\textmu{}",
    "\u2010": "-",
    "\u2011": "-",
    "\u2215": "/",
    **dict.fromkeys("\u2002\u2003\u2009\u202f", r"\,"),
    **dict.fromkeys("\u200b\u200c\u200d\ufeff", ""),
    **{digit: rf"\textsuperscript{{{k}}}" for k, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{digit: rf"\textsubscript{{{k}}}" for k, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{letter: f"${_greek(letter)}$" for letter in _GREEK},
}
"""Character → LaTeX; other Latin letters need none, and other scripts need LuaLaTeX or XeLaTeX"""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Characters with which a spreadsheet starts a formula"""

_WIDE = 8
"""A table of more columns is scaled to the width of the text"""


def latex_text(text: str) -> str:
    """Return ``text`` for LaTeX, without commands, on one line."""
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", unicodedata.normalize("NFC", text))
    pairs = zip(plain, f"{plain[1:]} ", strict=True) if plain else ()
    # Two hyphens in a row would be set as one dash.
    return "".join("-{}" if a == b == "-" else _LATEX.get(a, a) for a, b in pairs)


def to_latex(table: Table, *, label: str) -> str:
    """Return the table as people read it, as a floating LaTeX ``table`` (packages ``booktabs``, ``graphicx``).

    Parameters
    ----------
    label : of the float, behind ``tab:``
    """
    before, lines, after = latex_parts(table, label=label)
    return "\n".join([before, *lines, after])


def latex_parts(table: Table, *, label: str) -> tuple[str, list[str], str]:
    """Return what comes before the rows, each row, and what comes after them."""
    cells, numeric = shown(table), numeric_columns(table)
    columns = "".join("r" if name in numeric else "l" for name in cells.columns)
    lines = [" & ".join(map(latex_text, row)) + r" \\" for row in cells.to_numpy().tolist()]
    head = " & ".join(latex_text(str(name)) for name in cells.columns) + r" \\"
    wide = len(columns) > _WIDE
    words = f"{latex_text(table.title)}. {latex_text(table.caption)}"
    before = [
        r"% needs \usepackage{booktabs,graphicx,textcomp}",
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{words}}}",
        rf"\label{{tab:{label}}}",
        *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
    ]
    after = [r"\bottomrule", r"\end{tabular}}" if wide else r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(before), lines, "\n".join(after)


def to_csv(table: Table) -> str:
    """Return the table's numbers in full, as CSV (RFC 4180).

    Text that a spreadsheet would run as a formula (it begins with ``=``, ``+``, ``-`` or ``@``) is given an apostrophe
    in front; numbers are numbers.
    """
    return _csv(table.frame)


def csv_parts(table: Table) -> list[str]:
    """Return the heading and each row of :func:`to_csv`, without line ends."""
    return [_csv(table.frame.iloc[:0]).rstrip("\r\n")] + [
        _csv(table.frame.iloc[[k]], header=False).rstrip("\r\n") for k in range(len(table.frame))
    ]


def _csv(frame: pd.DataFrame, *, header: bool = True) -> str:
    frame = frame.copy()
    for column in frame.columns:
        frame[column] = [harmless(v) if isinstance(v, str) else v for v in frame[column]]
    frame.columns = [harmless(str(c)) for c in frame.columns]
    return str(frame.to_csv(index=False, header=header, lineterminator="\r\n"))


def harmless(text: str) -> str:
    """Return ``text``, with an apostrophe in front where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
