"""Commands as dataclasses: every option reaches its field, is refused when wrong, and stands in the settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import conceptkit as ck
from conceptkit import families
from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.families import ADAPTERS
from conceptkit.options import COMMANDS, from_settings
from conceptkit.options.base import Names, Options, RecordCommand, StudyCommand, declare, described, option, seed_list
from conceptkit.registry import load

CLASSES = {name: load(place) for name, place in COMMANDS.items()}
ALL = [(name, one.name) for name, cls in CLASSES.items() for one in described(cls)]


class RanError(Exception):
    """A command has been made from its command line."""


def sample(one):
    """A value that differs from the default, as text and as the field should hold it."""
    if one.choices():
        text = next(choice for choice in one.choices() if choice != one.default)
        return text, (text,) if one.many else text
    if one.pairs:
        return "a=b", {"a": "b"}
    if one.type in (int, float):
        number = one.type(max(one.declared.minimum or 0, 0) + (1 if one.type is int else 0.5))
        if one.declared.maximum is not None:
            number = one.type(one.declared.maximum)
        number = number + 1 if number == one.default and one.declared.maximum is None else number
        text = f"{number},{number + 1}" if one.declared.parse is not None and one.many else str(number)
        return text, (number, *([number + 1] if "," in text else [])) if one.many else number
    return "given", ("given",) if one.many else "given"


def arguments(cls, name):
    """The command line that gives one option, with whatever else must be given, and the value it should have."""
    words, wanted = [], None
    for one in described(cls):
        if not (one.required or one.name == name):
            continue
        if one.type is bool:
            flags = one.flag.split("/")
            words.append(flags[-1] if one.default is True else flags[0])
            value = one.default is not True
        else:
            text, value = sample(one)
            words += [text] if one.declared.argument else [one.flag.split(" ")[0], text]
        wanted = value if one.name == name else wanted
    return words, wanted


@pytest.mark.parametrize(("command", "name"), ALL)
def test_every_option_reaches_its_field(monkeypatch, tmp_path, command, name):
    monkeypatch.chdir(tmp_path)
    Path("given").write_text("image,count\na.png,1\n")  # for options that name a file
    seen = []

    def run(self, *args, **kwargs):
        seen.append(self)
        raise RanError

    cls = CLASSES[command]
    monkeypatch.setattr(cls, "run", run)
    words, wanted = arguments(cls, name)
    result = CliRunner().invoke(app, [*command.split(), *words])
    assert isinstance(result.exception, RanError), result.output
    value = getattr(seen[0], name)
    assert (str(value) if isinstance(value, Path) else value) == wanted
    others = [one for one in described(cls) if one.name != name and not one.required]
    assert all(getattr(seen[0], one.name) == one.checked(one.default) for one in others)


ADAPTED = [
    (adapter, parameter)
    for adapter, function in ADAPTERS.items()
    for parameter in inspect.signature(function).parameters
]
"""Every adapter with the names of its options"""


def adapter_arguments(function, name):
    """The command line that gives an adapter's option, with those it needs, and the values it should receive."""
    words, wanted, types = ["--out", "table.csv"], {"out": Path("table.csv")}, get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "out" or (parameter.default is not parameter.empty and parameter.name != name):
            continue
        several = get_origin(types[parameter.name]) is Sequence
        kinds = set(get_args(types[parameter.name])) - {type(None)} or {types[parameter.name]}
        [kind] = kinds
        text = "7" if kind in (int, float) else "given"
        flag = f"--{parameter.name.replace('_', '-')}".removesuffix("s" if several else "")
        words += [text] if parameter.kind is not parameter.KEYWORD_ONLY else [flag, text]
        wanted[parameter.name] = [kind(text)] if several else kind(text)
    return words, wanted


@pytest.mark.parametrize(("adapter", "name"), ADAPTED)
def test_every_option_of_an_adapter_reaches_it(monkeypatch, tmp_path, adapter, name):
    monkeypatch.chdir(tmp_path)
    function, seen = ADAPTERS[adapter], {}

    @functools.wraps(function)
    def adapt(*args, **kwargs):
        seen.update(inspect.signature(function).bind(*args, **kwargs).arguments)
        raise RanError

    monkeypatch.setitem(ADAPTERS._loaded, adapter, adapt)
    words, wanted = adapter_arguments(function, name)
    result = CliRunner().invoke(app, ["adapt", adapter, *words])
    assert isinstance(result.exception, RanError), result.output
    assert seen[name] == wanted[name]
    defaults = {n: p.default for n, p in inspect.signature(function).parameters.items() if n not in wanted}
    assert {n: tuple(v) if isinstance(v, list) else v for n, v in seen.items() if n not in wanted} == defaults


OF_FAMILY = {
    **dict.fromkeys(["probe.pool", "extract.pool", "attribute.pool", "robustness.pool"], families.POOLINGS),
    "attribute.method": families.ATTRIBUTIONS,
    "tile.stain": families.STAIN,
    **dict.fromkeys(["measure.nuclei", "nuclei score.nuclei"], families.NUCLEI),
    "guide.disturb": families.DISTURBANCES,
    "robustness.remedies": families.REMEDIES,
    **dict.fromkeys(["guide.recipe", "grid.recipe"], families.RECIPES),
    **{
        f"{command}.{name}": family
        for command in ("guide", "grid", "bags")
        for name, family in {
            "method": families.DISCOURAGING,
            "optimizer": families.OPTIMIZERS,
            "reversal": families.SCHEDULES,
        }.items()
    },
}
"""Command and option → the family that it chooses from"""


def test_options_named_after_a_family_choose_from_it():
    names = {place.partition(".")[2] for place in OF_FAMILY}
    assert {f"{command}.{name}" for command, name in ALL if name in names} == set(OF_FAMILY)


@pytest.mark.parametrize("place", OF_FAMILY)
def test_choices_are_the_members_of_a_family(place, monkeypatch):
    command, _, name = place.partition(".")
    family = OF_FAMILY[place]
    [one] = [one for one in described(CLASSES[command]) if one.name == name]
    assert one.choices() == tuple(family)
    monkeypatch.setitem(family._loaded, "of-a-script", family[next(iter(family))])
    assert one.checked(["of-a-script"] if one.many else "of-a-script") in ("of-a-script", ("of-a-script",))
    with pytest.raises(InputError, match="near names: of-a-script"):
        one.checked(["of-a-scrip"] if one.many else "of-a-scrip")


def test_grl_is_another_name_of_reversal():
    assert ck.Guide(method="grl").method == "reversal"


@pytest.mark.parametrize("command", CLASSES)
def test_settings_hold_every_option_and_make_the_same_command(command):
    cls = CLASSES[command]
    required = {one.name: sample(one)[1] for one in described(cls) if one.required}
    made = cls(**required)
    assert set(made.settings()) == {field.name for field in dataclasses.fields(cls)}
    assert from_settings({"command": command, "weights_sha256": "0", **made.settings()}) == made


@pytest.mark.parametrize("command", CLASSES)
def test_help_shows_defaults_and_choices(command):
    cls = CLASSES[command]
    line = typer.main.get_command(app)
    for word in command.split():
        line = line.commands[word]
    parameters = {p.name: p for p in line.params}
    for one in described(cls):
        shown = parameters[one.name]
        assert shown.help == one.help.replace("`", "")
        assert one.help[-1] in ".…", (command, one.name)
        for choice in one.choices():
            assert choice in (one.declared.metavar or shown.metavar)
    general = set(parameters) - {one.name for one in described(cls)}
    assert {"json", "debug"} <= general
    assert ("study" in general) == issubclass(cls, StudyCommand | RecordCommand)


@declare
class Shared(Options):
    """Shared options."""

    panel = "Data"
    names: Names = option((), flag="--name")
    """Names."""


@declare
class Example(Shared, RecordCommand):
    """An example."""

    name = "example"
    example = "example"
    runner = "nowhere:run"

    size: int = option(3, minimum=1, maximum=9)
    """Size."""
    share: float | None = None
    """Share."""
    way: str = option("fast", choices=lambda: ("fast", "slow"))
    """Way."""
    pairs: dict[str, str] | None = None
    """Pairs."""
    seeds: tuple[int, ...] = option((0,), parse=seed_list)
    """Seeds."""
    flag: bool = False
    """Flag."""


RIGHT: list[tuple[str, Any, Any]] = [
    ("names", "a, b", ("a", "b")),
    ("names", '"a, b",c', ("a, b", "c")),
    ("names", ["a, b"], ("a, b",)),
    ("names", np.array(["a"]).tolist(), ("a",)),
    ("size", np.int64(4), 4),
    ("size", "4", 4),
    ("share", 1, 1.0),
    ("share", np.float32(0.5), 0.5),
    ("share", None, None),
    ("pairs", "a=b,c=d", {"a": "b", "c": "d"}),
    ("seeds", 3, (0, 1, 2)),
    ("seeds", "3", (0, 1, 2)),
    ("seeds", "7,9", (7, 9)),
    ("seeds", [7], (7,)),
]


@pytest.mark.parametrize(("name", "given", "wanted"), RIGHT)
def test_values_come_into_their_type(name, given, wanted):
    assert getattr(Example(**{name: given}), name) == wanted


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"nmes": "a"}, "names"),
    ({"size": 0}, "at least 1"),
    ({"size": 10}, "at most 9"),
    ({"size": 2.5}, "whole number"),
    ({"size": True}, "whole number"),
    ({"size": None}, "must be given"),
    ({"share": "much"}, "a number"),
    ({"share": [0.1]}, "a number"),
    ({"way": "fats"}, "near names: fast"),
    ({"names": 3}, "list"),
    ({"names": [3]}, "text"),
    ({"pairs": "a"}, "NAME=OTHER"),
    ({"flag": 1}, "True or False"),
    ({"seeds": "x"}, "whole number"),
    ({"seeds": 0}, "at least 1"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_wrong_values_are_refused_in_a_sentence(given, words):
    with pytest.raises(InputError, match=words) as error:
        Example(**given)
    assert str(error.value).endswith(".")


def test_options_without_a_name_or_a_needed_value_are_refused():
    with pytest.raises(InputError, match="by name"):
        Example("a")
    with pytest.raises(InputError, match="concept: must be given"):
        ck.Audit(checkpoint="x")


def test_commands_are_frozen_and_can_be_replaced():
    one = Example(names="a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.size = 4
    assert one.replace(size=4) == Example(names="a", size=4)
    with pytest.raises(InputError, match="at most"):
        one.replace(size=40)


def test_own_options_come_before_shared_ones():
    assert [one.name for one in described(Example)][-1] == "names"
    assert {one.panel for one in described(Example)} == {"Options", "Data"}


def test_settings_of_another_command_are_refused():
    with pytest.raises(InputError, match="near names: audit"):
        from_settings({"command": "adit"})
