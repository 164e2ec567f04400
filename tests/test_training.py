"""The training loop: what acts when, what stays as it is, and which rows may matter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from conceptkit._checks import InputError
from conceptkit.guide.inputs import Inputs
from conceptkit.guide.options import TrainingOptions
from conceptkit.guide.prefix import Pooled
from conceptkit.guide.training import predict, train
from conceptkit.models.guided import MAIN, GuidedModel, Task

MAIN_TASK = Task(name=MAIN, kind="categorical", classes=("normal", "tumor"))
SIZE = Task(name="size", kind="continuous")
CENTER = Task(name="center", kind="categorical", classes=("A", "B"), adversarial=True)

OPTIONS = TrainingOptions(trunk=(8,), dropout=0.0, epochs=3, warmup=1, batch_size=16, lr=1e-2)


class Normalised(nn.Module):
    """A backbone whose BatchNorm would drift if it were trained."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x


def some_data(n=96):
    rng = np.random.default_rng(0)
    X = torch.tensor(rng.normal(3, 2, (n, 6)), dtype=torch.float32)
    targets = {
        MAIN: (X[:, 0] > 3).long(),
        "size": (X[:, 1] - 3) / 2,
        "center": (X[:, 2] > 3).long(),
    }
    rows = {"train": np.arange(64), "val": np.arange(64, 80), "test": np.arange(80, n)}
    return X, targets, rows


def fit(options=OPTIONS, *, tasks=(MAIN_TASK, SIZE, CENTER), seed=0, change=None):
    X, targets, rows = some_data()
    if change is not None:
        change(X, targets, rows)
    torch.manual_seed(7)
    model = GuidedModel(Normalised(), 6, tasks, trunk=options.trunk, dropout=options.dropout).eval()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    inputs = Inputs((X,), Pooled(model))
    return train(model, inputs, targets, rows, options, seed=seed, device="cpu"), inputs


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def test_training_repeats_from_its_seed_and_differs_with_another():
    first, second, other = fit()[0], fit()[0], fit(seed=1)[0]
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_dropout_acts_in_training_alone():
    heavy = dataclasses.replace(OPTIONS, dropout=0.9)
    trained, inputs = fit(heavy)
    assert not torch.equal(weights(trained), weights(fit()[0]))
    one, other = (predict(trained.model, inputs)[0][MAIN] for _ in range(2))
    assert torch.equal(one, other)


def test_the_backbones_moving_statistics_stay():
    trained, _ = fit()
    fresh = Normalised().state_dict()
    kept = trained.model.backbone.state_dict()
    assert all(torch.equal(fresh[name], kept[name]) for name in fresh)


def test_rows_outside_training_and_validation_do_not_matter():
    def spoil(X, targets, rows):
        X[rows["test"]] = 1e6
        targets[MAIN][rows["test"]] = 1 - targets[MAIN][rows["test"]]

    def turn(X, targets, rows):
        targets[MAIN][rows["train"]] = 1 - targets[MAIN][rows["train"]]

    assert torch.equal(weights(fit()[0]), weights(fit(change=spoil)[0]))
    assert not torch.equal(weights(fit()[0]), weights(fit(change=turn)[0]))


def test_missing_values_are_masked_not_guessed():
    def forget(X, targets, rows):
        targets["size"][rows["train"][::2]] = float("nan")
        targets["center"][rows["train"][1::2]] = -1

    def forget_all(X, targets, rows):
        targets["size"][:] = float("nan")

    assert torch.isfinite(weights(fit(change=forget)[0])).all()
    trained = fit(change=forget_all)[0]
    assert torch.isfinite(weights(trained)).all()
    assert np.isnan(trained.history[0]["train/size"])


def test_the_kept_state_is_the_best_one_after_the_schedule():
    long = dataclasses.replace(OPTIONS, epochs=12, warmup=4, patience=3)
    trained, _ = fit(long)
    wanted = [entry["val/main"] + entry["val/size"] for entry in trained.history]
    assert trained.best_epoch == 1 + 4 + int(np.argmin(wanted[4:]))
    assert len(trained.history) <= min(12, trained.best_epoch + 3)


@pytest.mark.parametrize("reversal", ["constant", "ramp", "switched"])
def test_every_schedule_reaches_its_end(reversal):
    options = dataclasses.replace(OPTIONS, reversal=reversal, method="reversal", strength=0.7, epochs=3, warmup=2)
    trained, _ = fit(options)
    assert trained.model.reversals["center"].strength.item() == pytest.approx(0.7)


def test_confusion_makes_the_concept_harder_to_read():
    """A straight line through the trunk's end tells less of the discouraged class than without strength."""

    def readable(**options):
        trained, inputs = fit(dataclasses.replace(OPTIONS, epochs=30, warmup=2, patience=30, **options))
        trunk = predict(trained.model, inputs)[1]
        _, targets, rows = some_data()
        Z = torch.cat([trunk, torch.ones(len(trunk), 1)], 1)[rows["train"]]
        y = targets["center"][rows["train"]].float() * 2 - 1
        fitted = Z @ torch.linalg.lstsq(Z, y[:, None]).solution
        return 1 - ((fitted[:, 0] - y) ** 2).mean().item() / y.var(correction=0).item()

    free = readable(strength=0.0)
    assert readable(strength=2.0, method="confusion") < free - 0.1


def test_the_reversed_gradient_reaches_the_trunk():
    free, reversed_ = (
        fit(dataclasses.replace(OPTIONS, method="reversal", strength=strength, warmup=0))[0].model.trunk[0][0].weight
        for strength in (0.0, 1.0)
    )
    assert not torch.equal(free, reversed_)


def test_the_main_loss_is_balanced_only_where_a_category_is_discouraged():
    def confound(X, targets, rows):
        agree = torch.arange(len(X)) % 10 < 8
        targets["center"][:] = torch.where(agree, targets[MAIN], 1 - targets[MAIN])

    def trunk(balance_main, tasks):
        options = dataclasses.replace(OPTIONS, balance_main=balance_main, strength=0.0, balance=False)
        return fit(options, tasks=tasks, change=confound)[0].model.trunk[0][0].weight

    alone = (MAIN_TASK, SIZE)
    assert torch.equal(trunk(0.0, alone), trunk(1.0, alone))
    assert not torch.equal(trunk(0.0, (*alone, CENTER)), trunk(1.0, (*alone, CENTER)))


def test_the_penalty_is_twice_the_squared_norm_as_torch_counts_it():
    """One SGD step of a network whose losses are all missing moves the trunk's kernels by −lr·2λW alone."""

    def forget(X, targets, rows):
        targets[MAIN][rows["train"]] = -1
        targets["size"][:] = float("nan")
        targets["center"][:] = -1

    options = dataclasses.replace(
        OPTIONS, optimizer="sgd", lr=0.1, momentum=0.0, l2=0.01, epochs=1, warmup=0, batch_size=64
    )
    before = fit(dataclasses.replace(options, l2=0.0), change=forget)[0].model
    after = fit(options, change=forget)[0].model
    kernel, decayed = before.trunk[0][0].weight, after.trunk[0][0].weight
    torch.testing.assert_close(decayed, kernel * (1 - 0.1 * 2 * 0.01))
    for name, value in before.state_dict().items():
        if name != "trunk.0.0.weight":
            assert torch.equal(value, after.state_dict()[name]), name


def test_loss_weights_start_anew_when_the_schedule_has_ended():
    options = dataclasses.replace(OPTIONS, epochs=4, warmup=3, patience=9, weighting="uncertainty")
    kept = fit(options)[0].history
    anew = fit(dataclasses.replace(options, reset_weights=True))[0].history
    assert kept[2]["weight/size"] == anew[2]["weight/size"]
    assert abs(np.log(anew[3]["weight/size"])) < abs(np.log(kept[3]["weight/size"]))


def test_a_loss_that_is_not_finite_ends_with_its_task_named():
    def overflow(X, targets, rows):
        targets["size"][rows["train"]] = 1e30

    with pytest.raises(InputError, match="the loss of size is not finite in epoch 1"):
        fit(change=overflow)
