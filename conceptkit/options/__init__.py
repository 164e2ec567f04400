"""Options of each command: frozen dataclasses that define command line, documentation and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conceptkit.errors import InputError, check_choice
from conceptkit.options.base import Command, described
from conceptkit.options.shared import GIVEN
from conceptkit.registry import load

COMMANDS: Mapping[str, str] = {
    "probe": "conceptkit.options.probe:Probe",
    "guide": "conceptkit.options.guide:Guide",
    "grid": "conceptkit.options.grid:Grid",
    "bags": "conceptkit.options.bags:Bags",
    "predict": "conceptkit.options.predict:Predict",
    "predictivity": "conceptkit.options.predictivity:Predictivity",
    "attribute": "conceptkit.options.attribute:Attribute",
    "audit": "conceptkit.options.audit:Audit",
    "robustness": "conceptkit.options.robustness:Robustness",
    "tile": "conceptkit.options.tile:Tile",
    "measure": "conceptkit.options.measure:Measure",
    "nuclei train": "conceptkit.options.nuclei:NucleiTrain",
    "nuclei score": "conceptkit.options.nuclei:NucleiScore",
    "qupath": "conceptkit.options.qupath:Qupath",
    "splits": "conceptkit.options.study:Splits",
    "extract": "conceptkit.options.extract:Extract",
    "layers": "conceptkit.options.layers:Layers",
    "encoders": "conceptkit.options.encoders:Encoders",
    "report": "conceptkit.options.report:Report",
    "verify": "conceptkit.options.report:Verify",
    "demo": "conceptkit.options.report:Demo",
    "init": "conceptkit.options.study:Init",
    "status": "conceptkit.options.study:Status",
    "doctor": "conceptkit.options.study:Doctor",
}
"""Name of a command → ``module:class``, in the order of the help; of a subcommand, with its group before it"""

GROUPS: Mapping[str, str] = {"nuclei": "Train and score the segmentation of nuclei."}
"""Group of subcommands → its help"""

RECORDS: Mapping[str, str] = {
    "probe": "conceptkit.records.probe:ProbeRecord",
    "guide": "conceptkit.records.guide:GuideRecord",
    "grid": "conceptkit.records.grid:GridRecord",
    "bags": "conceptkit.records.bags:BagsRecord",
    "predictivity": "conceptkit.records.predictivity:PredictivityRecord",
    "attribute": "conceptkit.records.attribute:AttributeRecord",
    "audit": "conceptkit.records.audit:AuditRecord",
    "robustness": "conceptkit.records.robustness:RobustnessRecord",
}
"""Name of a command that writes a record → ``module:class`` of the record, whose schema is ``conceptkit/NAME/…``"""


def from_settings(settings: Mapping[str, Any]) -> Command:
    """Return the command that made a record, from the record's settings.

    Settings hold paths as they were given; run the command where these exist, on the study or table of the record.
    Settings other than options, such as the digest of the weights, are ignored.

    Raises
    ------
    InputError
        when the settings have no valid command, a value that its options do not allow, or a torch module, which they
        cannot hold
    """
    name = str(settings.get("command"))
    check_choice("command", name, COMMANDS)
    command: type[Command] = load(COMMANDS[name])
    if settings.get("weights") == GIVEN:
        raise InputError(
            f"model: the network was a torch module, {settings.get('model')}, which settings cannot hold; give it "
            'again as from_settings({**record.settings, "model": MODULE, "weights": None}).'
        )
    names = [option.name for option in described(command)]
    return command(**{name: settings[name] for name in names if name in settings})
