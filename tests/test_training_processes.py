"""Training in several processes, after a kill, with logs, and with aggregated gradients."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from small_training import MAIN_TASK, OPTIONS, SIZE, fit, weights

from conceptkit.errors import InputError
from conceptkit.guide import loop
from conceptkit.guide.engine import TrainingEngine
from conceptkit.options.training import TrainingOptions

SHARED = dataclasses.replace(OPTIONS, method="confusion")
"""The default method compares the rows of whole batches, which several processes do not have."""


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

    options = dataclasses.replace(SHARED, batch_size=5, optimizer="sgd", lr=0.05)
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
    one, _ = fit(SHARED)
    end_with(monkeypatch, Ending(tmp_path))
    two, _ = fit(SHARED, parallel=2)
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
        fit(SHARED, parallel=2)


@pytest.mark.long
def test_a_mistake_in_one_of_several_processes_is_a_sentence():
    def spoil(X, targets, rows):
        X[rows["train"][3]] = float("nan")

    with pytest.raises(InputError, match=r"^guide: the loss of main"):
        fit(SHARED, change=spoil, parallel=2)


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
    with pytest.raises(InputError, match=f"method: {method} compares .* 2 devices; set --method confusion, or"):
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
