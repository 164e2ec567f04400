"""A concept bottleneck on a network that is not trained: concept heads by ridge, then the main head on what they say.

Sequential, after Koh et al. (2020): the heads of the concepts are fitted on every training row that has a value, and
the main head on their predictions for rows of *other* patients, which have the errors that new patients will have. A
main head that were fitted on predictions of the rows themselves would trust them too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.guide.bench import Arm, Bench
from conceptkit.guide.frozen import WEAK, fit_rows
from conceptkit.guide.inputs import Inputs, on_device
from conceptkit.guide.objective import balance_factors, class_weights
from conceptkit.guide.training import Trained
from conceptkit.models.guided import CONTINUOUS, MAIN, GuidedModel, Task
from conceptkit.probe.crossfit import each_fold_and_all
from conceptkit.probe.folds import make_folds
from conceptkit.probe.logistic import PENALTIES, choose_penalty, fit_logistic
from conceptkit.probe.ridge import Eigenbasis, Split, factorise
from conceptkit.probe.search import choose_alpha

FOLDS = 10
"""Parts of the training patients; the more, the closer are the predictions for left-out ones to those of all rows"""

LEAST_PATIENTS = 4
"""With a value of a concept: two parts, in each of which a penalty is chosen by left-out patients"""

FREE = 10.0
"""Factor of the standardised concepts next to a residual path, which makes their penalty a hundredth of λ = 1"""

ABSENT = -30.0
"""Logit of a class without a row in a training part"""

Solution = tuple[Floats, Floats]
"""Coefficients (d, nodes) in units of the features, and intercepts (nodes,)"""


@dataclass(frozen=True)
class Rows:
    """Training rows, each followed by its re-stained copies, if there are any."""

    shown: Tensor
    """(n,) positions among the inputs"""
    own: NDArray[np.intp]
    """(n,) positions among the used rows"""
    groups: NDArray[np.intp]
    """(n,) group numbers 0 … g − 1"""
    codes: NDArray[np.intp]
    """(n,) class numbers of the main task, −1 where unlabelled"""

    @classmethod
    def of(cls, bench: Bench, inputs: Inputs, labels: Tensor) -> Rows:
        """Return the rows that train."""
        own = np.searchsorted(bench.used, bench.plan.training)
        shown = torch.from_numpy(own)
        if inputs.copies is not None:
            every = torch.cat([shown[:, None], inputs.copies[shown]], dim=1)
            shown, own = every.flatten(), np.repeat(own, every.shape[1])
        groups = np.unique(bench.plan.groups[bench.used][own], return_inverse=True)[1]
        return cls(shown, own, groups, labels.numpy()[own])


def fit_bottleneck(
    bench: Bench, arm: Arm, network: GuidedModel, inputs: Inputs, targets: Mapping[str, Tensor]
) -> Trained:
    """Fit the heads of an arm's concepts, and its main head on out-of-fold predictions of them.

    Penalties of the concepts' heads are chosen by left-out patients; that of the main head is weak and fixed, and its
    rows have the weights that they have in the main loss.

    Raises
    ------
    InputError
        when a concept has values of too few patients, or no part of the labelled rows has every class
    """
    rows = Rows.of(bench, inputs, targets[MAIN])
    X = read_layers(network, inputs, rows.shown, bench.engine.device)
    parts = []
    for task in network.through:
        target = targets[task.name].numpy()[rows.own]
        columns, solution = _fit_concept(task, X[task.layer], target, rows, arm.seed)
        _set(network, task.name, *solution)
        parts.append(columns)
    _fit_main(bench, arm, network, np.concatenate(parts, axis=1), X, rows, targets[MAIN])
    return Trained(network, (), 0)


def fit_components(
    bench: Bench, arm: Arm, network: GuidedModel, inputs: Inputs, targets: Mapping[str, Tensor]
) -> Trained:
    """Set the heads to the principal components of the standardised features of training rows, then fit the main head.

    The scores have variance 1. Components need no values, so that nothing is left out.
    """
    rows = Rows.of(bench, inputs, targets[MAIN])
    X = read_layers(network, inputs, rows.shown, bench.engine.device)
    taken: dict[str | None, int] = {}
    bases = {layer: factorise(X[layer]) for layer in {task.layer for task in network.through}}
    parts = []
    for task in network.through:
        basis, k = bases[task.layer], taken.get(task.layer, 0)
        taken[task.layer] = k + 1
        if k >= len(basis.spectrum):
            raise InputError("arms: components needs more principal components than the training rows have.")
        one = np.zeros((len(basis.spectrum), 1))
        one[-1 - k] = np.sqrt(len(rows.own) / basis.spectrum[-1 - k])
        weights = basis.weights(one)
        _set(network, task.name, weights, -basis.mean @ weights)
        parts.append((X[task.layer] - basis.mean) @ weights)
    _fit_main(bench, arm, network, np.concatenate(parts, axis=1), X, rows, targets[MAIN])
    return Trained(network, (), 0)


def read_layers(network: GuidedModel, inputs: Inputs, rows: Tensor, device: str) -> dict[str | None, Floats]:
    """Return layer → features (n, d) of rows of the inputs, for every layer that a head reads."""
    wanted = {task.layer for task in network.through} | ({None} if network.residual is not None else set())
    found: dict[str | None, list[Floats]] = {layer: [] for layer in wanted}
    with on_device(network, inputs, device) as where, torch.inference_mode():
        for batch in torch.split(rows, 256):
            reads = network.reads(*inputs.rest(*inputs.batch(batch, where)))
            for layer, parts in found.items():
                parts.append(reads[layer].cpu().double().numpy())
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def _fit_concept(task: Task, X: Floats, target: NDArray[Any], rows: Rows, seed: int) -> tuple[Floats, Solution]:
    """Return the out-of-fold columns (n, c) of a concept for the training rows, and the solution of all its rows."""
    known = np.flatnonzero(np.isfinite(target) if task.kind == CONTINUOUS else target >= 0)
    patients, groups = np.unique(rows.groups[known], return_inverse=True)
    if len(patients) < LEAST_PATIENTS:
        raise InputError(
            f"through: {task.name} has values of {len(patients)} training patients, its head needs at least "
            f"{LEAST_PATIENTS}."
        )
    solve, y = _ridge if task.kind == CONTINUOUS else _logistic, target[known]
    parts = min(FOLDS, len(patients) // 2)
    splits = make_folds(len(known), groups, parts, seed=seed, strata=[rows.codes[known]])

    def work(basis: Eigenbasis, split: Split) -> Solution:
        return solve(basis, y[split[0]], groups[split[0]], task)

    each, whole = each_fold_and_all(X[known], splits, work, lambda basis: solve(basis, y, groups, task))
    raw = X @ whole[0] + whole[1]  # of patients without any value, whom it has not seen
    for (_, left), (weights, intercept) in zip(splits, each, strict=True):
        of_part = np.isin(rows.groups, patients[np.unique(groups[left])])
        raw[of_part] = X[of_part] @ weights + intercept
    return columns_of(task, raw), whole


def _ridge(basis: Eigenbasis, y: NDArray[Any], groups: NDArray[np.intp], task: Task) -> Solution:
    """Return the ridge solution of z-scores (n,), its penalty chosen by left-out patients."""
    response = basis.response(y.astype(np.float64)[:, None])
    return response.fit(choose_alpha(response, groups)).coefficients()


def _logistic(basis: Eigenbasis, y: NDArray[Any], groups: NDArray[np.intp], task: Task) -> Solution:
    """Return the logistic solution of class numbers (n,), a node for each class."""
    present, codes = np.unique(y, return_inverse=True)
    if len(present) < 2:
        raise InputError(f"through: {task.name} has one class only in one training part; it needs more patients.")
    A = basis.coordinates(basis.train)
    alpha = choose_penalty(A, basis.spectrum, codes, groups, PENALTIES, 3)
    solution, intercept = fit_logistic(A, basis.spectrum, codes, alpha)
    weights, intercept = basis.weights(solution), intercept[0] - basis.mean @ basis.weights(solution)
    if len(present) == 2:
        weights, intercept = np.hstack([-weights / 2, weights / 2]), np.concatenate([-intercept / 2, intercept / 2])
    every, shift = np.zeros((len(weights), len(task.classes))), np.full(len(task.classes), ABSENT)
    every[:, present.astype(np.intp)], shift[present.astype(np.intp)] = weights, intercept
    return every, shift


def columns_of(task: Task, raw: Floats) -> Floats:
    """Return what the main head reads (n, c) of raw outputs (n, nodes), as :meth:`GuidedModel.concepts` does."""
    if task.kind == CONTINUOUS:
        return raw
    out: Floats = torch.from_numpy(raw).softmax(1)[:, 1:].numpy()
    return out


def _fit_main(
    bench: Bench,
    arm: Arm,
    network: GuidedModel,
    columns: Floats,
    X: Mapping[str | None, Floats],
    rows: Rows,
    labels: Tensor,
) -> None:
    """Fit the main head on the concepts (n, c) of labelled training rows, with the residual path if there is one."""
    at = np.flatnonzero(labels.numpy()[rows.own] >= 0)
    fitted = fit_head(bench, arm, columns[at], rows.own[at], labels)
    if network.residual is None:
        _set(network, MAIN, *fitted)
        return
    # The penalty of a column falls with the square of its scale: λ for the features, hardly any for the concepts.
    scalers = [StandardScaler().fit(part[at]) for part in (columns, X[None])]
    scales = (FREE, 1 / np.sqrt(arm.penalty))
    Z = np.hstack([s.transform(p[at]) * f for s, p, f in zip(scalers, (columns, X[None]), scales, strict=True)])
    weights = _row_weights(bench, arm, rows.own[at], labels)
    found = LogisticRegression(C=1.0, max_iter=2000).fit(Z, labels.numpy()[rows.own[at]], sample_weight=weights)
    c = columns.shape[1]
    beta, gamma = found.coef_[:, :c] * FREE / scalers[0].scale_, found.coef_[:, c:] * scales[1] / scalers[1].scale_
    _set(network, MAIN, beta.T, found.intercept_ - beta @ scalers[0].mean_ - gamma @ scalers[1].mean_)
    with torch.no_grad():
        network.residual.weight.copy_(torch.from_numpy(gamma))


def fit_head(bench: Bench, arm: Arm, columns: Floats, own: NDArray[np.intp], labels: Tensor) -> Solution:
    """Return the logistic regression of the main label on columns (n, c) of labelled rows, which are standardised.

    Parameters
    ----------
    own : (n,) positions among the used rows
    labels : (n used rows,) class numbers
    """
    scaler = StandardScaler().fit(columns)
    found = fit_rows(scaler.transform(columns), labels.numpy()[own], _row_weights(bench, arm, own, labels), WEAK)
    beta = found.coef_ / scaler.scale_
    return beta.T, found.intercept_ - beta @ scaler.mean_


def _row_weights(bench: Bench, arm: Arm, own: NDArray[np.intp], labels: Tensor) -> Floats:
    """Return the weights (n,) of labelled rows in the main loss."""
    codes = labels[torch.from_numpy(own)]
    weights = class_weights(codes, len(bench.plan.classes))[codes]
    balanced = balance_factors(bench.shortcut(arm)[own], codes, power=arm.options.balance_main)
    out: Floats = (weights * balanced).double().numpy()
    return out


def _set(network: GuidedModel, name: str, weights: Floats, intercept: Floats) -> None:
    head = cast(nn.Linear, network.heads[name])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights.T))
        head.bias.copy_(torch.from_numpy(np.asarray(intercept)))
