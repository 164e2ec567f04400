"""Logistic regression on the features of a network before training, scored like the networks that are trained."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from conceptkit.errors import InputError
from conceptkit.evaluate.scores import Floats
from conceptkit.guide.bench import Arm, Bench
from conceptkit.guide.inputs import on_device
from conceptkit.guide.objective import balance_factors, class_weights
from conceptkit.guide.reading import TrainedRun, read_run
from conceptkit.models.guided import MAIN
from conceptkit.probe.folds import make_folds

INVERSE_PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Tried values of scikit-learn's ``C``, from strong to weak"""

FOLDS = 5


def fit_frozen(bench: Bench, arm: Arm) -> TrainedRun:
    """Return the run of a logistic regression on the pooled features of the network at its start.

    Features are standardised by the training rows; rows have the weights that they have in the main loss; the penalty
    is that of least weighted log-loss on left-out groups of training rows.

    Raises
    ------
    InputError
        when the training rows have fewer than two groups, or no part of them has every class
    """
    X = frozen_features(bench, arm)
    train = bench.at["train"]
    targets = bench.targets(arm.tasks[:1])[MAIN]
    train = train[(targets[train] >= 0).numpy()]
    codes = targets[train]
    weights = class_weights(codes, len(bench.plan.classes))[codes]
    shortcut = bench.shortcut(arm)[train]
    weights = weights * balance_factors(shortcut, codes, power=arm.options.balance_main)
    scaler = StandardScaler().fit(X[train])
    groups = bench.plan.groups[bench.used][train]
    fitted = fit_rows(scaler.transform(X[train]), codes.numpy(), weights.double().numpy(), groups, "logistic")
    logits = np.asarray(fitted.decision_function(scaler.transform(X)), dtype=np.float64).reshape(len(X), -1)
    return read_run(
        arm.name, arm.seed, None, (), arm.tasks, {MAIN: logits}, X.astype(np.float32), bench.plan, bench.reading
    )


def frozen_features(bench: Bench, arm: Arm) -> Floats:
    """Return the pooled features (n used rows, width) of the network before training."""
    network = bench.build(arm.tasks, arm.options, arm.seed)
    inputs = bench.inputs(network)
    with on_device(network, inputs, bench.engine.device) as where, torch.inference_mode():
        parts = torch.split(torch.arange(len(bench.used)), 256)
        return torch.cat([inputs.rest(*inputs.batch(rows, where))[0].cpu() for rows in parts]).double().numpy()


def fit_rows(
    X: Floats, codes: NDArray[np.intp], weights: Floats, groups: NDArray[np.intp], arm: str
) -> LogisticRegression:
    """Return the regression with the penalty of least weighted log-loss on left-out groups, the larger on a tie.

    Parameters
    ----------
    X : (n, d) standardised
    codes, weights, groups : (n,) class numbers, weights, and group numbers of the rows
    arm : for the errors

    Raises
    ------
    InputError
        when the rows have fewer than two groups, or no part of them has every class
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    if numbers.max() < 1:
        raise InputError(
            f"arms: {arm} chooses its penalty on left-out patients, and the labelled training rows have only one."
        )
    classes = np.unique(codes)
    loss, tried = np.zeros(len(INVERSE_PENALTIES)), 0
    for own, left in make_folds(len(X), numbers, min(FOLDS, int(numbers.max()) + 1), strata=[codes]):
        if len(np.unique(codes[own])) < len(classes):
            continue
        tried += 1
        model = _model(INVERSE_PENALTIES[0])
        for k, value in enumerate(INVERSE_PENALTIES):  # each starts at the solution before
            _solve(model.set_params(C=value), X[own], codes[own], weights[own])
            found = model.predict_log_proba(X[left])
            loss[k] -= weights[left] @ found[np.arange(len(left)), np.searchsorted(classes, codes[left])]
    if not tried:
        raise InputError(f"arms: {arm} needs two training patients of every class to choose its penalty.")
    return _solve(_model(INVERSE_PENALTIES[int(loss.argmin())]), X, codes, weights)


def _model(inverse: float) -> LogisticRegression:
    return LogisticRegression(C=inverse, warm_start=True, max_iter=300)


def _solve(model: LogisticRegression, X: Floats, codes: NDArray[np.intp], weights: Floats) -> LogisticRegression:
    with warnings.catch_warnings():
        # Weak penalties of separable rows end at the limit of iterations; left-out rows judge them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, codes, sample_weight=weights)
