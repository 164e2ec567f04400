"""The training loop: what acts when, what stays as it is, and which rows may matter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_training import CENTER, MAIN_TASK, OPTIONS, SIZE, Normalised, fit, some_data, weights

from conceptkit.errors import InputError
from conceptkit.guide.training import DivergedError, predict
from conceptkit.models.guided import MAIN


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


@pytest.mark.parametrize(
    ("weighting", "parallel"), [("uncertainty", 1), ("uncertainty-bounded", 1), ("uncertainty-bounded", 2)]
)
def test_a_task_without_a_label_keeps_its_weight(weighting, parallel):
    def forget(X, targets, rows):
        targets["size"][rows["train"]] = float("nan")

    options = dataclasses.replace(OPTIONS, weighting=weighting, method="confusion")
    without = [e["weight/size"] for e in fit(options, change=forget, parallel=parallel)[0].history]
    assert without == [1.0, 1.0, 1.0]
    if parallel == 1:
        assert fit(options)[0].history[-1]["weight/size"] != 1.0  # the control: with labels it is learned


def test_an_aggregation_leaves_out_a_task_without_a_label():
    """A row of zeros among the gradients would let this aggregator stand still."""
    pytest.importorskip("torchjd", reason="torchjd is not installed")

    def forget(X, targets, rows):
        targets["size"][rows["train"]] = float("nan")

    options = dataclasses.replace(OPTIONS, weighting="jd-mgda", epochs=12)
    history = fit(options, tasks=(MAIN_TASK, SIZE), change=forget)[0].history
    assert history[-1]["train/main"] < 0.7 * history[0]["train/main"]


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
        y = targets["center"][rows["train"]].numpy() * 2 - 1
        # NumPy's solver takes a trunk with idle units, whose columns are zero; torch's does not say what it does then.
        solution = np.linalg.lstsq(Z.double().numpy(), y, rcond=None)[0]
        return 1 - ((Z.double().numpy() @ solution - y) ** 2).mean() / y.var()

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


DIVERGING = dataclasses.replace(
    OPTIONS,
    method="confusion",
    stop_by="sum",
    optimizer="sgd",
    lr=0.3,
    momentum=0.0,
    weighting="vanilla",
    trunk=(),
    epochs=9,
)


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_training_that_diverges_keeps_its_best_state(parallel):
    with pytest.raises(DivergedError, match="in epoch 4; a lower --lr") as raised:
        fit(DIVERGING, parallel=parallel)
    kept = raised.value.kept
    assert (kept.best_epoch, len(kept.history)) == (2, 3)
    in_time, _ = fit(dataclasses.replace(DIVERGING, epochs=3))
    assert in_time.best_epoch == 2
    torch.testing.assert_close(
        weights(kept), weights(in_time), rtol=0 if parallel == 1 else 1e-4, atol=1e-5 * (parallel > 1)
    )


def test_before_a_best_state_the_last_good_one_is_kept():
    with pytest.raises(DivergedError) as raised:
        fit(dataclasses.replace(DIVERGING, warmup=8))
    assert raised.value.kept.best_epoch == 3
    with pytest.raises(DivergedError) as raised:
        fit(dataclasses.replace(DIVERGING, lr=1e30))
    assert raised.value.kept is None
    assert "no checkpoint was saved" in str(raised.value.kept_in("folder"))


def test_what_is_given_is_named_where_it_is_not_finite():
    def spoil(part, index):
        def change(X, targets, rows):
            X[rows[part][index]] = float("inf")

        return change

    for part, what in (("train", "the loss of main"), ("val", "the validation loss of main")):
        with pytest.raises(InputError, match=f"{what}.* the input of the network is not finite in 1 of") as raised:
            fit(change=spoil(part, 3))
        assert "--lr" not in str(raised.value)


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_infinite_value_is_not_taken_for_a_missing_one(part):
    def spoil(value):
        def change(X, targets, rows):
            targets["size"][rows[part][3]] = value

        return change

    with pytest.raises(InputError, match="values of size are infinite"):
        fit(change=spoil(float("inf")))
    fit(change=spoil(float("nan")))


@pytest.mark.parametrize("method", ["coral", "mmd"])
def test_matching_brings_the_classes_together(method):
    def use_the_class(X, targets, rows):
        targets[MAIN] = (X[:, 0] + 2 * X[:, 2] > 9).long()

    def apart(strength):
        free = dataclasses.replace(OPTIONS, epochs=20, warmup=2, patience=20, balance=False, balance_main=0.0)
        options = dataclasses.replace(free, method=method, strength=strength)
        trained, inputs = fit(options, change=use_the_class)
        _, targets, rows = some_data()
        trunk = predict(trained.model, inputs)[1][rows["train"]]
        code = targets["center"][rows["train"]]
        gap = trunk[code == 1].mean(0) - trunk[code == 0].mean(0)
        return float(gap.norm() / trunk.std(0).norm())

    assert apart(20.0) < 0.6 * apart(0.0)


def test_erasure_leaves_nothing_linear_of_the_concept():
    options = dataclasses.replace(OPTIONS, epochs=10, balance=False)

    def explained(method):
        trained, inputs = fit(dataclasses.replace(options, method=method))
        _, targets, rows = some_data()
        read = predict(trained.model, inputs)[1][rows["train"]].double()
        Z = torch.cat([read, torch.ones(len(read), 1)], 1)
        y = targets["center"][rows["train"]].double()[:, None]
        # Below float32's own rounding there is nothing to read.
        fitted = Z @ torch.linalg.lstsq(Z, y, driver="gelsd", rcond=1e-5).solution
        return 1 - float(((fitted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())

    assert explained("reversal") > 0.05
    assert abs(explained("leace")) < 1e-4


def test_scores_of_heads_are_those_of_the_kept_back_rows():
    trained, inputs = fit(dataclasses.replace(OPTIONS, epochs=3, warmup=2))
    outputs, _ = predict(trained.model, inputs)
    _, targets, rows = some_data()
    last = trained.history[trained.best_epoch - 1]
    y = targets["size"][rows["val"]].double()
    read = outputs["size"][rows["val"], 0].double()
    assert last["score/size"] == pytest.approx(1 - float(((y - read) ** 2).sum() / ((y - y.mean()) ** 2).sum()))
    for name, predicted in (("main", outputs[MAIN][:, 0] > 0), ("center", outputs["center"].argmax(1))):
        y, guess = targets[name][rows["val"]], predicted[rows["val"]].long()
        recalls = [float((guess[y == c] == c).double().mean()) for c in (0, 1)]
        assert last[f"score/{name}"] == pytest.approx(np.mean(recalls))
