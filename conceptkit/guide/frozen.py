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

WEAK = 10.0
"""``C`` of a regression on a few concepts. A penalty chosen by left-out patients shrinks the sum of two concepts of
opposite sign to nothing where patients are few."""

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
    X, *_ = frozen_features(bench, arm, np.arange(len(bench.used)))
    train = bench.at["train"]
    targets = bench.targets(arm.tasks[:1])[MAIN]
    train = train[(targets[train] >= 0).numpy()]
    codes = targets[train]
    weights = class_weights(codes, len(bench.plan.classes))[codes]
    shortcut = bench.shortcut(arm)[train]
    weights = weights * balance_factors(shortcut, codes, power=arm.options.balance_main)
    scaler = StandardScaler().fit(X[train])
    groups = bench.plan.groups[bench.used][train]
    rows = scaler.transform(X[train]), codes.numpy(), weights.double().numpy()
    fitted = fit_rows(*rows, choose_inverse(*rows, groups))
    logits = np.asarray(fitted.decision_function(scaler.transform(X)), dtype=np.float64).reshape(len(X), -1)
    return read_run(
        arm.name, arm.seed, None, (), arm.tasks, {MAIN: logits}, X.astype(np.float32), bench.plan, bench.reading
    )


def frozen_features(bench: Bench, arm: Arm, rows: NDArray[np.intp]) -> list[Floats]:
    """Return the features of the network before training at ``rows`` (n,) of the used rows.

    Returns
    -------
    the pooled features (n, width), then the output (n, d) of each layer that a head of the arm reads
    """
    network = bench.build(arm.tasks, arm.options, arm.seed)
    inputs = bench.inputs(network)
    with on_device(network, inputs, bench.engine.device) as where, torch.inference_mode():
        parts = [inputs.rest(*inputs.batch(part, where)) for part in torch.split(torch.from_numpy(rows), 256)]
        return [torch.cat([part.cpu() for part in column]).double().numpy() for column in zip(*parts, strict=True)]


def fit_rows(X: Floats, codes: NDArray[np.intp], weights: Floats, inverse: float) -> LogisticRegression:
    """Return the regression of class numbers (n,) on standardised columns (n, d), with rows weighted."""
    return solve(_model(inverse), X, codes, weights)


def choose_inverse(
    X: Floats, codes: NDArray[np.intp], weights: Floats, groups: NDArray[np.intp], arm: str = "logistic"
) -> float:
    """Return the inverse penalty of least weighted log-loss on left-out groups, that of the larger penalty on a tie.

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
            solve(model.set_params(C=value), X[own], codes[own], weights[own])
            found = model.predict_log_proba(X[left])
            loss[k] -= weights[left] @ found[np.arange(len(left)), np.searchsorted(classes, codes[left])]
    if not tried:
        raise InputError(f"arms: {arm} needs two training patients of every class to choose its penalty.")
    return INVERSE_PENALTIES[int(loss.argmin())]


def standardised(X: Floats) -> Floats:
    """Return columns (n, d) with mean 0 and standard deviation 1."""
    return np.asarray(StandardScaler().fit_transform(X))


def fitted_scores(
    X: Floats, codes: NDArray[np.intp], weights: Floats, train: NDArray[np.intp], test: NDArray[np.intp], inverse: float
) -> Floats:
    """Return the logits (m,) of two classes, (m, k) of more, of ``test`` rows by a regression on ``train`` rows.

    Parameters
    ----------
    X : (n, d) features, which are standardised by the training rows
    codes : (n,) class numbers
    weights : (len(train),) in the loss
    train, test : row numbers
    """
    scaler = StandardScaler().fit(X[train])
    model = solve(_model(inverse), scaler.transform(X[train]), codes[train], weights)
    return np.asarray(model.decision_function(scaler.transform(X[test])), dtype=np.float64)


def _model(inverse: float) -> LogisticRegression:
    return LogisticRegression(C=inverse, warm_start=True, max_iter=300)


def solve(model: LogisticRegression, X: Floats, codes: NDArray[np.intp], weights: Floats) -> LogisticRegression:
    """Return a regression fitted to standardised rows."""
    with warnings.catch_warnings():
        # Weak penalties of separable rows end at the limit of iterations; left-out rows judge them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, codes, sample_weight=weights)
