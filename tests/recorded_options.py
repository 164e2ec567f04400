"""Whether a record holds every option of the command that made it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from conceptkit.options.training import TrainingOptions
from conceptkit.records import Record

ELSEWHERE = ("study", "out", "progress", "notify")
"""Arguments that are no options: the study and the folder are in the record itself, the others are callbacks"""


def forgotten(
    run: Callable[..., Record], settings: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> set[str]:
    """Return the options of a command that its record's settings do not have.

    Parameters
    ----------
    run : a function with an argument per option, or the dataclass of the options
    settings : of a record that it made, as they are after saving and loading
    renamed : argument → key of the settings, where another name was there before
    """
    wanted = set(inspect.signature(run).parameters) - set(ELSEWHERE)
    if "options" in wanted:  # the options of training, each by its own name
        wanted |= {field.name for field in dataclasses.fields(TrainingOptions)}
        wanted.remove("options")
    return {name for name in wanted if (renamed or {}).get(name, name) not in settings}
