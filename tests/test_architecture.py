"""The house: who may import whom, what is imported when, and which names are public."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import conceptkit
from conceptkit.options import COMMANDS, RECORDS

PACKAGE = Path(conceptkit.__file__).parent

ROOMS = (
    *(
        "errors",
        "registry",
        "families",
        "options",
        "files",
        "records",
        "evaluate",
        "images",
        "tables",
        "jobs",
        "pathology",
        "synthetic",
    ),
    *("models", "probe", "features", "runs", "attribution", "guide", "grid", "report", "commands", "cli", "__main__"),
)
"""From the ground floor up: a room imports from rooms before it, and from itself."""

ARRAYS_ONLY = ("probe", "evaluate")

HEAVY = ("torch", "torchvision", "timm", "lightning", "captum")


def modules():
    """Dotted name → path of every module."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source, name="conceptkit.some", *, package=False):
    """Every name that a module imports, wherever in it: inside functions and for the type checker too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                parts = parts[: len(parts) - node.level + package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            # "from conceptkit.models import layers" imports a module; "… .errors import InputError" does not.
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return found


@functools.cache
def imported(name):
    path = MODULES[name]
    return imports(path.read_text(encoding="utf-8"), name, package=path.name == "__init__.py")


def inside(name):
    """The modules of the package that a module imports."""
    return {m for m in imported(name) if m.split(".")[0] == "conceptkit"}


def room(name):
    return name.split(".")[1]


# The package itself hands out public names of all rooms, one at a time when they are first used.
INSIDE = [name for name in MODULES if name != "conceptkit"]


def upward(name, targets):
    """The imports of a module that do not lead down."""
    here = ROOMS.index(room(name))
    wrong = set()
    for target in targets:
        if target == "conceptkit":  # the package's __version__ and no more
            continue
        if room(target) != room(name) and ROOMS.index(room(target)) >= here:
            wrong.add(target)
    return wrong


def test_every_module_has_a_room():
    assert {room(name) for name in INSIDE} <= set(ROOMS)


@pytest.mark.parametrize("name", INSIDE)
def test_imports_lead_downward(name):
    assert upward(name, inside(name)) == set()


def test_the_walk_sees_an_import_that_leads_upward():
    source = "def f():\n    from conceptkit.models import backbones\n    from ..guide.training import train\n"
    seen = imports(source, "conceptkit.probe.ridge")
    assert upward("conceptkit.probe.ridge", seen) == {"conceptkit.guide.training"}
    assert upward("conceptkit.tables.study", seen) == {"conceptkit.models.backbones", "conceptkit.guide.training"}
    assert upward("conceptkit.tables.study", imports("if TYPE_CHECKING:\n    import conceptkit.commands\n")) == {
        "conceptkit.commands"
    }


def by_name():
    """Every module of the package that is fetched by its name's text: place → name."""
    return {
        (name, node.args[0].value)
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute | ast.Name)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id)
        in ("import_module", "__import__")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and str(node.args[0].value).startswith("conceptkit")
    }


def test_no_module_of_the_package_is_fetched_by_name():
    assert by_name() == set()


def test_a_record_is_drawn_by_the_room_above_it():
    assert not {m for m in closure("conceptkit.records") if room(m) in ("report", "evaluate")}
    code = (
        "import sys; from conceptkit.records import ProbeRecord; record = ProbeRecord(study='s', rows=());"
        "assert 'conceptkit.report' not in sys.modules and 'matplotlib' not in sys.modules;"
        "print(type(record.plot()).__name__, repr(record), record._repr_html_())"
    )
    assert run(code).split() == ["Figure", "ProbeRecord(study='s')", "ProbeRecord(study=&#x27;s&#x27;)"]


ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"


def test_the_architecture_page_lists_the_rooms_in_order():
    listed = re.findall(r"^\| `(\w+)` \|", ARCHITECTURE.read_text(encoding="utf-8"), re.M)
    assert listed[::-1] == [name for name in ROOMS if name != "__main__"]


def test_no_modules_import_each_other():
    TopologicalSorter(
        {name: inside(name) & set(INSIDE) for name in INSIDE}
    ).prepare()  # names a circle, if there is one
    with pytest.raises(CycleError):  # the control
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def closure(name):
    """All modules of the package that a module needs, itself among them."""
    found, todo = set(), [name]
    while todo:
        current = todo.pop()
        if current not in found:
            found.add(current)
            todo += inside(current) & set(INSIDE)
    return found


def outside(names):
    return {m.split(".")[0] for name in names for m in imported(name)}


@pytest.mark.parametrize("name", [n for n in INSIDE if room(n) in ARRAYS_ONLY])
def test_probe_and_evaluate_know_arrays_only(name):
    assert not outside(closure(name)) & set(HEAVY)
    light = (*ARRAYS_ONLY, "errors", "registry", "families", "options", "records", "files")
    assert not {m for m in closure(name) if room(m) not in light}


@pytest.mark.parametrize("name", [n for n in INSIDE if room(n) == "report"])
def test_the_report_never_loads_a_network_or_a_slide(name):
    assert not outside(closure(name)) & {*HEAVY, "openslide"}
    upstairs = {"models", "tables", "features", "runs", "pathology", "guide", "grid", "commands"}
    assert not {m for m in closure(name) if room(m) in upstairs}


def test_the_walk_sees_torch():
    assert "torch" in outside(closure("conceptkit.features.activations"))
    assert "torch" in outside(closure("conceptkit.commands.probe"))


FUNCTION_MOST, FILE_MOST = 80, 500
"""Lines of a function with its docstring, and of a file"""

SOURCES = [
    path
    for folder in ("conceptkit", "tests", "benchmarks", "examples")
    for path in (PACKAGE.parent / folder).rglob("*.py")
]


def functions(source):
    """The functions of a module, methods and functions inside functions among them."""
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def long_functions(source):
    return [n.name for n in functions(source) if n.end_lineno - n.lineno >= FUNCTION_MOST]


def is_long(source):
    return len(source.splitlines()) > FILE_MOST


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_long(name):
    assert long_functions(MODULES[name].read_text(encoding="utf-8")) == []


def test_no_file_is_long():
    assert {path.parts[-2] for path in SOURCES} >= {"cli", "tests", "benchmarks", "examples"}
    assert [str(path) for path in SOURCES if is_long(path.read_text(encoding="utf-8"))] == []


def test_a_long_function_and_a_long_file_are_seen():
    method = "class C:\n    async def f(self):\n" + "        x = 1\n" * (FUNCTION_MOST - 1)
    assert long_functions(method) == []
    assert long_functions(method + "        x = 1\n") == ["f"]
    assert not is_long("x = 1\n" * FILE_MOST)
    assert is_long("x = 1\n" * (FILE_MOST + 1))


COMMAND_LINE = "the help must not wait for the packages that commands need"
EXTRA = "an optional package"
NATIVE = "a C library that may be missing, which only slides need"
POSIX = "not on every system"
LATE = {
    "cli/__init__.py": (1, COMMAND_LINE),
    "cli/adapt.py": (1, COMMAND_LINE),
    "cli/command.py": (1, COMMAND_LINE),
    "cli/console.py": (10, COMMAND_LINE),
    "cli/guide.py": (2, COMMAND_LINE),
    "commands/doctor.py": (3, "a broken package is what it reports"),
    "commands/nuclei.py": (4, "torch and torchvision take seconds, which a bad list or option must not wait for"),
    "commands/qupath.py": (2, "tracing and drawing take 40 to 100 MB, which an export of patches does not need"),
    "commands/status.py": (1, POSIX),
    "features/cluster.py": (1, EXTRA),
    "probe/remedies.py": (1, EXTRA),
    "probe/shortcut.py": (1, EXTRA),
    "features/matrix_files.py": (1, "torch takes a second and 400 MB, which only files of tensors need"),
    "files/atomic.py": (1, POSIX),
    "guide/aggregation.py": (2, EXTRA),
    "guide/engine.py": (1, EXTRA),
    "images/decoding.py": (2, NATIVE),
    "jobs.py": (1, EXTRA),
    "models/adapter.py": (2, EXTRA),
    "models/backbones.py": (1, "timm takes two seconds or more, which the bundled network does not need"),
    "pathology/finding.py": (1, NATIVE),
    "pathology/slides.py": (1, NATIVE),
    "records/base.py": (1, "pandas takes half a second, which the command line reads records without"),
    "report/embedding.py": (1, "umap takes three seconds, which only UMAPs need"),
}
"""File → how many imports stand inside its functions, and why"""


def late_imports(source):
    """The imports inside functions, those of functions inside functions once."""
    return {
        node.lineno
        for function in functions(source)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


def test_imports_inside_functions_are_few_and_have_a_reason():
    counts = {
        path.relative_to(PACKAGE).as_posix(): len(late_imports(path.read_text(encoding="utf-8")))
        for path in MODULES.values()
    }
    assert {file: n for file, n in counts.items() if n} == {file: n for file, (n, _) in LATE.items()}


def test_the_walk_sees_imports_inside_functions():
    source = "import a\n\ndef f():\n    import b\n    def g():\n        from c import d\n"
    assert late_imports(source) == {4, 6}


@pytest.mark.parametrize("name", ["utils", "util", "common", "helpers", "helper", "misc", "manager"])
def test_no_module_has_a_name_that_says_nothing(name):
    assert not [m for m in MODULES if name in m.split(".")]


@pytest.mark.parametrize("name", MODULES)
def test_the_first_line_of_a_module_is_its_purpose(name):
    text = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    assert text
    first = text.splitlines()[0]
    assert first.endswith((".", "?"))
    assert len(first) <= 120


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        check=True,
        timeout=60,
    ).stdout


LIGHT = (
    "conceptkit",
    "conceptkit.cli",
    "conceptkit.options.probe",
    "conceptkit.tables.study",
    "conceptkit.probe.validation",
)


@pytest.mark.parametrize("name", [n for n in LIGHT if n in MODULES])
def test_what_is_imported_without_torch(name):
    heavy = ("torch", "timm", "lightning", "captum", "matplotlib", "umap", "skimage", "seaborn", "openslide")
    found = run(f"import sys, {name}; print([m for m in {heavy!r} if m in sys.modules])")
    assert found.strip() == "[]"


HELPS = """
import sys
from conceptkit.cli import app
for words in {lines!r}:
    try:
        app([*words, "--help"])
    except SystemExit as end:
        assert not end.code
    print("heavy:", *words, [m for m in {heavy!r} if m in sys.modules])
"""


def heavy_after_help(lines, heavy):
    """What has been imported after the help of each command line, one after the other."""
    shown = run(HELPS.format(lines=lines, heavy=heavy))
    assert shown.count("Usage:") == len(lines)
    return [line for line in shown.splitlines() if line.startswith("heavy:")]


def test_help_imports_nothing_heavy():
    lines = [(), *(tuple(name.split()) for name in COMMANDS)]
    heavy = ("torch", "pandas", "numpy", "scipy", "matplotlib", "timm", "openslide")
    assert heavy_after_help(lines, heavy) == [" ".join(["heavy:", *words, "[]"]) for words in lines]


def test_help_of_adapters_imports_no_network():
    lines = [("adapt",), ("adapt", "camelyon")]
    heavy = ("torch", "timm", "matplotlib", "openslide", "pandas")  # the last one is the control
    assert heavy_after_help(lines, heavy) == ["heavy: adapt []", "heavy: adapt camelyon ['pandas']"]


def test_the_control_imports_torch():
    assert run("import sys, conceptkit; conceptkit.GradientReversal; print('torch' in sys.modules)").strip() == "True"


def test_public_names():
    assert conceptkit.__all__ == sorted(conceptkit.__all__)
    assert len(set(conceptkit.__all__)) == len(conceptkit.__all__)
    assert dir(conceptkit) == conceptkit.__all__
    for name in conceptkit.__all__:
        value = getattr(conceptkit, name)
        if name != "__version__":
            assert value.__name__ == name
            assert value.__module__.startswith("conceptkit.")
            assert value.__doc__
    with pytest.raises(AttributeError, match="module 'conceptkit' has no attribute 'run_everything'"):
        conceptkit.run_everything  # noqa: B018  # the access is the matter


def test_the_type_checker_sees_the_same_names():
    tree = ast.parse(MODULES["conceptkit"].read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    stated = {
        alias.asname or alias.name: node.module
        for node in ast.walk(checked)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("conceptkit.")
        for alias in node.names
    }
    commands = {place.partition(":")[2] for name in RECORDS for place in (COMMANDS[name], RECORDS[name])}
    assert {*stated, *commands, "__version__"} == set(conceptkit.__all__)  # those of a new command may be left out
    for name, home in stated.items():
        assert getattr(conceptkit, name).__module__ == home
