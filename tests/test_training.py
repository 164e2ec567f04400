"""The training loop: what acts when, what stays as it is, and which rows may matter."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch import nn

from conceptkit.errors import InputError
from conceptkit.guide import loop
from conceptkit.guide.engine import TrainingEngine
from conceptkit.guide.inputs import Inputs
from conceptkit.options.training import TrainingOptions
from conceptkit.guide.prefix import Pooled
from conceptkit.guide.training import DivergedError, predict, train
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


def fit(options=OPTIONS, *, tasks=(MAIN_TASK, SIZE, CENTER), seed=0, change=None, parallel=1, loggers=(), **how):
    X, targets, rows = some_data()
    if change is not None:
        change(X, targets, rows)
    torch.manual_seed(7)
    model = GuidedModel(
        Normalised(), 6, tasks, trunk=options.trunk, dropout=options.dropout, erases=options.method == "leace"
    ).eval()
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    inputs = Inputs((X,), Pooled(model))
    engine = TrainingEngine(device="cpu", devices=parallel, loggers=loggers)
    return train(model, inputs, targets, rows, options, seed=seed, engine=engine, **how), inputs


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


@pytest.mark.parametrize(
    ("weighting", "parallel"), [("uncertainty", 1), ("uncertainty-bounded", 1), ("uncertainty-bounded", 2)]
)
def test_a_task_without_a_label_keeps_its_weight(weighting, parallel):
    def forget(X, targets, rows):
        targets["size"][rows["train"]] = float("nan")

    options = dataclasses.replace(OPTIONS, weighting=weighting)
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


DIVERGING = dataclasses.replace(OPTIONS, optimizer="sgd", lr=0.3, momentum=0.0, weighting="vanilla", trunk=(), epochs=9)


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
        with pytest.raises(InputError, match=f"{what}.* what the network is given is not finite in 1 of") as raised:
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


class KilledError(Exception):
    """Stands for a signal that ends the process."""


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.5, "weighting": "dwa"},
        {"optimizer": "sgd", "dropout": 0.3, "patience": 2},
        {"method": "leace"},
    ],
    ids=["dropout and dynamic weights", "momentum and patience", "erasure"],
)
def test_a_killed_training_goes_on_where_it_was(tmp_path, options, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 0.0)
    options = dataclasses.replace(OPTIONS, epochs=8, warmup=1, **{"patience": 8, **options})
    whole, _ = fit(options)
    state = tmp_path / "state.ckpt"

    def kill(done, todo):
        if done == 4:
            raise KilledError

    with pytest.raises(KilledError):
        fit(options, state=state, progress=kill)
    told = []
    resumed, _ = fit(options, state=state, progress=lambda done, todo: told.append(done))
    assert told[0] == 4  # the fourth epoch's state was not written yet when it was killed
    assert torch.equal(weights(resumed), weights(whole))
    assert [*map(dict, resumed.history)] == [*map(dict, whole.history)]
    again, _ = fit(options, state=state, progress=lambda done, todo: pytest.fail("a finished training ran again"))
    assert torch.equal(weights(again), weights(whole))
    assert resumed.best_epoch == again.best_epoch == whole.best_epoch


def test_a_state_that_cannot_be_gone_on_from_is_a_sentence(tmp_path):
    state = tmp_path / "state.ckpt"
    state.write_bytes(b"no state")
    with pytest.raises(InputError, match=r"^state: .* cannot be read"):
        fit(state=state)
    state.unlink()
    fit(state=state, tasks=(MAIN_TASK, SIZE))
    with pytest.raises(InputError, match=r"is of another training"):
        fit(state=state)


def test_two_processes_learn_what_one_learns():
    """The same batches, labels missing in all rows of one process' share among them."""

    def forget(X, targets, rows):
        targets["size"][rows["train"][:40]] = float("nan")
        targets["center"][rows["train"][::3]] = -1

    options = dataclasses.replace(OPTIONS, batch_size=5, optimizer="sgd", lr=0.05)
    one, _ = fit(options, change=forget)
    two, _ = fit(options, change=forget, parallel=2)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-5)
    for alone, together in zip(one.history, two.history, strict=True):
        assert together == pytest.approx(alone, rel=1e-3, nan_ok=True)


class Ending(lightning.Callback):
    """Writes which threads a process still has when its training is over; the second process then aborts."""

    def __init__(self, folder, hook="on_fit_end"):
        self.folder = folder
        setattr(self, hook, self.end)

    def end(self, trainer, loop):
        threads = [Path(f"/proc/self/task/{n}/comm").read_text().strip() for n in os.listdir("/proc/self/task")]
        (self.folder / str(trainer.global_rank)).write_text("\n".join(threads))
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGABRT)


def end_with(monkeypatch, ending):
    plain = TrainingEngine.trainer
    monkeypatch.setattr(
        TrainingEngine,
        "trainer",
        lambda self, *, callbacks, **how: plain(self, callbacks=[*callbacks, ending], **how),
    )


def test_a_process_leaves_its_group_before_it_ends_and_how_it_ends_changes_nothing(tmp_path, monkeypatch):
    """Threads of the group that still ran when a process ended aborted it now and then."""
    one, _ = fit()
    end_with(monkeypatch, Ending(tmp_path))
    two, _ = fit(parallel=2)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-5)
    for rank in "01":
        threads = (tmp_path / rank).read_text()
        assert threads
        assert "gloo" not in threads
        assert "tcpstore" not in threads


@pytest.mark.long
def test_a_process_that_ends_before_its_training_is_a_sentence(tmp_path, monkeypatch):
    end_with(monkeypatch, Ending(tmp_path, "on_train_epoch_end"))
    with pytest.raises(InputError, match=r"^devices: a process of the training ended .*SIGABRT.* fewer devices\.$"):
        fit(parallel=2)


@pytest.mark.long
def test_a_mistake_in_one_of_several_processes_is_a_sentence():
    def spoil(X, targets, rows):
        X[rows["train"][3]] = float("nan")

    with pytest.raises(InputError, match=r"^guide: the loss of main"):
        fit(change=spoil, parallel=2)


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


def test_logs_can_be_watched(tmp_path):
    trained, _ = fit(log_to=tmp_path / "logs", loggers=("csv",))
    lines = (tmp_path / "logs" / "csv" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + len(trained.history)
    assert {"train/size", "val/main", "score/center", "weight/main", "epoch"} <= set(lines[0].split(","))


def test_logs_can_be_watched_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained, _ = fit(log_to=tmp_path / "logs", loggers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard")).Reload()
    assert {"train/size", "val/main", "score/center", "weight/main"} <= set(events.Tags()["scalars"])
    told = [(event.step, event.value) for event in events.Scalars("score/size")]
    assert told == [(int(e["epoch"]), pytest.approx(e["score/size"], rel=1e-5)) for e in trained.history]
    written = [event.value for event in events.Scalars("val/main")]
    assert written == pytest.approx([epoch["val/main"] for epoch in trained.history], rel=1e-6)  # 32 bits


@pytest.mark.parametrize("strategy", ["jd-upgrad", "jd-mgda", "jd-pcgrad", "jd-imtl", "jd-aligned", "jd-config"])
def test_aggregated_gradients_train_too(strategy):
    pytest.importorskip("torchjd", reason="torchjd is not installed")
    options = dataclasses.replace(OPTIONS, weighting=strategy, epochs=12)
    trained, _ = fit(options)
    assert trained.history[-1]["val/size"] < 0.7 * trained.history[0]["val/size"]
    assert not torch.equal(weights(trained), weights(fit(dataclasses.replace(options, weighting="vanilla"))[0]))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_aggregated_gradients_train_a_head_that_some_batches_have_no_label_of(optimizer):
    pytest.importorskip("torchjd", reason="torchjd is not installed")

    def sparse(X, targets, rows):
        targets["size"][rows["train"][3:]] = float("nan")

    options = dataclasses.replace(OPTIONS, weighting="jd-upgrad", optimizer=optimizer, lr=1e-3, epochs=2, batch_size=4)
    trained, _ = fit(options, change=sparse)
    assert torch.isfinite(weights(trained)).all()


@pytest.mark.parametrize("method", ["reversal", "confusion"])
def test_a_sum_as_the_aggregator_is_plain_training(method, monkeypatch):
    pytest.importorskip("torchjd", reason="torchjd is not installed")
    from conceptkit.guide import aggregation

    monkeypatch.setattr(aggregation, "AGGREGATORS", {"jd-upgrad": "Sum"})
    options = dataclasses.replace(OPTIONS, method=method)
    summed, _ = fit(dataclasses.replace(options, weighting="jd-upgrad"))
    plain, _ = fit(dataclasses.replace(options, weighting="vanilla"))
    torch.testing.assert_close(weights(summed), weights(plain), rtol=1e-4, atol=1e-5)


def test_aggregation_is_refused_where_it_cannot_be():
    pytest.importorskip("torchjd", reason="torchjd is not installed")
    with pytest.raises(InputError, match="is for all tasks together"):
        fit(dataclasses.replace(OPTIONS, weighting="vanilla,center=jd-mgda"))
    with pytest.raises(InputError, match="trains in one process"):
        fit(dataclasses.replace(OPTIONS, weighting="jd-upgrad"), parallel=2)


@pytest.mark.parametrize("method", ["coral", "mmd"])
def test_statistics_of_whole_batches_are_refused_in_several_processes(method):
    options = dataclasses.replace(OPTIONS, method=method)
    with pytest.raises(InputError, match=f"method: {method} compares the rows of whole batches"):
        fit(options, parallel=2)
    fit(dataclasses.replace(options, epochs=1))


def test_the_reversal_has_another_name():
    assert TrainingOptions(method="grl") == TrainingOptions(method="reversal")


def test_a_missing_extra_is_a_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(InputError, match=r"pip install 'conceptkit\[jd\]'"):
        fit(dataclasses.replace(OPTIONS, weighting="jd-upgrad"))
