"""The losses, their weights and the reversal, against the paper's equations written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from conceptkit.errors import InputError
from conceptkit.families import SCHEDULES
from conceptkit.guide.objective import (
    balance_factors,
    class_weights,
    confusion_loss,
    encode,
    joint_codes,
    task_loss,
)
from conceptkit.guide.weighting import Weighting, parse_weighting
from conceptkit.models.guided import MAIN, GradientReversal, GuidedModel, Task

MAIN_TASK = Task(name=MAIN, kind="categorical", classes=("normal", "tumor"))
COUNT = Task(name="count", kind="continuous", mean=10.0, deviation=2.0)
CENTER = Task(name="center", kind="categorical", classes=("A", "B", "C"), adversarial=True)


class Flat(nn.Module):
    """A backbone in one linear layer, with timm's two methods."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(5, 4)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x


def test_encoding_keeps_what_is_missing() -> None:
    values = encode(COUNT, [12.0, float("nan"), 8.0])
    assert values[0] == 1.0
    assert math.isnan(values[1])
    assert values[2] == -1.0
    assert encode(CENTER, ["B", None, "Z", "A"]).tolist() == [1, -1, -1, 0]


def test_class_weights_are_one_minus_the_share() -> None:
    weights = class_weights(torch.tensor([1] * 18 + [0] * 82 + [-1] * 50), 2)
    assert weights.tolist() == pytest.approx([0.18, 0.82])


def test_losses_are_means_over_labelled_rows() -> None:
    output = torch.tensor([[0.5], [2.0], [-1.0]])
    loss = task_loss(COUNT, output, torch.tensor([1.0, float("nan"), 0.0]))
    assert loss.item() == pytest.approx((0.5**2 + 1.0**2) / 2)
    logits = torch.tensor([[0.0], [1.0], [3.0]])
    weights = torch.tensor([0.25, 0.75])
    loss = task_loss(MAIN_TASK, logits, torch.tensor([1, 0, -1]), weights)
    by_hand = (0.75 * math.log(2) + 0.25 * math.log(1 + math.e)) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([2, -1, 0, 1])
    expected = nn.functional.cross_entropy(logits[[0, 2, 3]], target[[0, 2, 3]])
    assert task_loss(CENTER, logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_label_in_a_batch_is_zero_without_a_gradient() -> None:
    output = torch.ones(3, 1, requires_grad=True)
    loss = task_loss(COUNT, output, torch.full((3,), float("nan")))
    loss.backward()
    assert loss.item() == 0.0
    assert output.grad is not None
    assert output.grad.abs().sum() == 0.0


@pytest.mark.parametrize("weighting", ["vanilla", "uncertainty"])
def test_one_step_is_the_papers(weighting: str) -> None:
    """Equations 2 to 4: θ_f takes λ·α of each task's gradient, θ_y and θ_k take λ without α."""
    torch.manual_seed(0)
    tasks = (MAIN_TASK, COUNT, CENTER)
    model = GuidedModel(Flat(), 4, tasks, trunk=(3,)).double()
    weigh = Weighting(tasks, weighting).double()
    if weighting == "uncertainty":
        with torch.no_grad():
            for i, term in enumerate(weigh.terms.values()):
                term.log_variance.fill_(0.3 * i - 0.2)
    strength = 0.7
    model.reversals["center"].get_buffer("strength").fill_(strength)
    images = torch.randn(6, 5, dtype=torch.float64)
    targets = {
        MAIN: torch.tensor([0, 1, 1, 0, -1, 1]),
        "count": torch.tensor([0.5, -1.0, float("nan"), 2.0, 0.1, float("nan")], dtype=torch.float64),
        "center": torch.tensor([0, 1, 2, -1, 1, 0]),
    }

    def losses() -> dict[str, torch.Tensor]:
        outputs = model(images)
        return {t.name: task_loss(t, outputs[t.name], targets[t.name]) for t in tasks}

    shared = [*model.backbone.parameters(), *model.trunk.parameters()]
    expected: dict[int, torch.Tensor] = {}
    model.reversals["center"].get_buffer("strength").fill_(-1.0)  # −(−1) = 1: the plain gradient
    for task in tasks:
        factor = 1.0
        if weighting == "uncertainty":
            factor = (0.5 if task.kind == "continuous" else 1.0) * math.exp(-weigh.terms[task.name].log_variance.item())
        alpha = -strength if task.adversarial else 1.0
        parameters = [*shared, *model.heads[task.name].parameters()]
        for p, g in zip(parameters, torch.autograd.grad(losses()[task.name], parameters), strict=True):
            is_shared = any(p is q for q in shared)
            expected[id(p)] = expected.get(id(p), torch.zeros_like(p)) + factor * (alpha if is_shared else 1.0) * g
    model.reversals["center"].get_buffer("strength").fill_(strength)
    before = {id(p): p.detach().clone() for p in model.parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weigh(losses()).backward()
    optimizer.step()
    for p in model.parameters():
        torch.testing.assert_close(p.detach(), before[id(p)] - 0.1 * expected[id(p)], rtol=1e-10, atol=1e-12)


def test_the_reversal_is_an_identity_forwards_and_minus_lambda_backwards() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    y = GradientReversal(0.4)(x)
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.full((3, 2), -0.4))


@pytest.mark.parametrize(("name", "start", "end"), [("constant", 1.0, 1.0), ("ramp", 0.0, 1.0), ("switched", 0.0, 1.0)])
def test_schedules_reach_both_ends(name: str, start: float, end: float) -> None:
    schedule = SCHEDULES[name]
    assert schedule(0.0) == pytest.approx(start)
    assert schedule(1.0) == end
    values = [schedule(p) for p in np.linspace(0, 1, 50)]
    assert values == sorted(values)


@pytest.mark.parametrize("name", ["uncertainty", "uncertainty-bounded"])
def test_effective_weights_at_the_optimum(name: str) -> None:
    """With the losses held fixed, e^(−s) settles at 1/MSE and 1/(2·CE)."""
    weigh = Weighting((COUNT, CENTER), name)
    losses = {"count": torch.tensor(0.8), "center": torch.tensor(1.7)}
    optimizer = torch.optim.SGD(weigh.parameters(), lr=0.1)
    for _ in range(2000):
        optimizer.zero_grad()
        weigh(losses).backward()
        optimizer.step()
    assert weigh.weights() == pytest.approx({"count": 1 / 0.8, "center": 1 / (2 * 1.7)}, rel=1e-3)


@pytest.mark.parametrize("name", ["uncertainty", "uncertainty-bounded:2"])
def test_batches_without_a_label_leave_the_weight_alone(name: str) -> None:
    """One batch in ten is labelled: e^(−s) still settles at 1/MSE, and does not where the cost of s is paid always."""
    reached = {}
    for left_out in (True, False):
        weigh = Weighting((MAIN_TASK, COUNT), name)
        optimizer = torch.optim.SGD(weigh.parameters(), lr=0.1)
        for step in range(5000):
            labelled = step % 10 == 0
            losses = {MAIN: torch.tensor(1.0), "count": torch.tensor(0.8 if labelled else 0.0)}
            optimizer.zero_grad()
            total = weigh(losses, () if labelled or not left_out else ("count",))
            if left_out and not labelled:
                assert total.item() == pytest.approx(weigh({MAIN: losses[MAIN]}).item())
            total.backward()
            optimizer.step()
        reached[left_out] = weigh.weights()["count"]
    assert reached[True] == pytest.approx(1 / 0.8, rel=1e-3)
    assert reached[False] == pytest.approx(2.0 if "bounded" in name else 10 / 0.8, rel=0.3)


def test_the_papers_code_doubles_the_weight() -> None:
    weigh = Weighting((CENTER,), "uncertainty-full")
    optimizer = torch.optim.SGD(weigh.parameters(), lr=0.1)
    for _ in range(2000):
        optimizer.zero_grad()
        weigh({"center": torch.tensor(1.7)}).backward()
        optimizer.step()
    assert weigh.weights()["center"] == pytest.approx(1 / 1.7, rel=1e-3)


def test_only_the_bounded_weights_stay_bounded_when_a_task_overfits() -> None:
    reached = {}
    for name in ("uncertainty", "uncertainty-bounded"):
        weigh = Weighting((COUNT,), name)
        optimizer = torch.optim.SGD(weigh.parameters(), lr=0.1)
        for _ in range(500):
            optimizer.zero_grad()
            weigh({"count": torch.tensor(1e-4)}).backward()
            optimizer.step()
        reached[name] = weigh.weights()["count"]
    assert reached["uncertainty-bounded"] == pytest.approx(4.0)
    assert reached["uncertainty"] > 1000


def test_weights_can_be_set_per_task() -> None:
    weigh = Weighting((MAIN_TASK, COUNT, CENTER), "uncertainty,center=fixed:0.25,count=uncertainty-bounded:2")
    assert weigh.weights() == {MAIN: 1.0, "count": 1.0, "center": 0.25}
    with torch.no_grad():
        for parameter in weigh.parameters():
            parameter.fill_(-5.0)
    assert weigh.weights() == pytest.approx({MAIN: math.exp(5), "count": 2.0, "center": 0.25})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("uncertanty", "near names: uncertainty"),
        ("fixed", "fixed needs a value"),
        ("vanilla:2", "takes no value after a colon, got 2"),
        ("uncertainty,vanilla", "one strategy for all tasks"),
        ("fixed:much", "'much' in 'fixed:much' is not a number"),
        ("fixed:-1", "at least 0"),
    ],
)
def test_a_weighting_that_cannot_be_read_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Weighting((MAIN_TASK, COUNT), text)


def test_dynamic_weights_follow_the_ratio_of_losses() -> None:
    weigh = Weighting((MAIN_TASK, COUNT, CENTER), "dwa,center=fixed:0.5")
    weigh.end_epoch({MAIN: 1.0, "count": 2.0, "center": 3.0})
    assert weigh.weights() == {MAIN: 1.0, "count": 1.0, "center": 0.5}
    weigh.end_epoch({MAIN: 0.5, "count": 1.8, "center": 1.0})
    powers = {MAIN: math.exp(0.5 / 2), "count": math.exp(0.9 / 2)}
    expected = {name: 2 * power / sum(powers.values()) for name, power in powers.items()}
    assert weigh.weights() == pytest.approx({**expected, "center": 0.5})
    assert parse_weighting("dwa") == (("dwa", None), {})


def test_balanced_rows_tell_nothing_of_the_label() -> None:
    rng = np.random.default_rng(0)
    main = torch.tensor(rng.integers(0, 2, 400))
    codes = torch.tensor([rng.choice(3, p=[0.6, 0.3, 0.1] if y else [0.1, 0.2, 0.7]) for y in main.tolist()])
    main[:20], codes[10:30] = -1, -1
    factors = balance_factors(codes, main)
    assert (factors[:30] == 1).all()
    both = (codes >= 0) & (main >= 0)

    def shares(weight: torch.Tensor) -> torch.Tensor:
        counts = [[weight[both & (codes == c) & (main == y)].sum() for y in (0, 1)] for c in range(3)]
        table = torch.tensor(counts)
        return table / table.sum(0)

    balanced = shares(factors)
    torch.testing.assert_close(balanced[:, 0], balanced[:, 1])
    plain = shares(torch.ones(len(codes)))
    assert (plain[:, 0] - plain[:, 1]).abs().max() > 0.3  # the control: unweighted, the concept tells the label
    expected = torch.tensor([(codes[both] == c).float().mean() for c in range(3)])
    torch.testing.assert_close(balanced[:, 0], expected)


def test_a_reversed_value_has_a_bounded_loss() -> None:
    task = Task(name="size", kind="continuous", adversarial=True)
    output = torch.tensor([[1e6], [0.5]], requires_grad=True)
    loss = task_loss(task, output, torch.tensor([0.0, 0.0]), bounded=True)
    assert loss.item() == pytest.approx((1.0 + 1.0 - math.exp(-0.125)) / 2)
    loss.backward()
    assert output.grad is not None
    assert output.grad.abs().max() < 0.5
    encouraged = task_loss(COUNT, output.detach(), torch.tensor([0.0, 0.0]))
    assert encouraged.item() > 1e11


def test_confusion_is_least_where_every_class_is_as_likely() -> None:
    target = torch.tensor([0, 1, -1])
    even = torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    assert confusion_loss(CENTER, even, target).item() == pytest.approx(0.0, abs=1e-6)
    sure = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    p = math.exp(5) / (math.exp(5) + 2)
    by_hand = -(math.log(p) + 2 * math.log((1 - p) / 2)) / 3 - math.log(3)
    assert confusion_loss(CENTER, sure, target).item() == pytest.approx(by_hand, rel=1e-5)


def test_confusion_moves_what_is_shared_and_leaves_the_head() -> None:
    torch.manual_seed(0)
    model = GuidedModel(Flat(), 4, (MAIN_TASK, CENTER), trunk=(3,))
    reads = model.reads(*model.features(torch.randn(4, 5)))
    confusion_loss(CENTER, model.held_outputs(reads)["center"], torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is None for p in model.heads.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.trunk.parameters())


def test_partial_balance_lies_between_and_has_mean_one() -> None:
    main = torch.tensor([0, 0, 0, 1, 1, 1, 1, -1])
    codes = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0])
    full, half, none = (balance_factors(codes, main, power=power) for power in (1.0, 0.5, 0.0))
    known = main >= 0
    for factors in (full, half, none):
        assert factors[known].mean().item() == pytest.approx(1.0)
        assert factors[7] == 1.0
    assert (none == 1.0).all()
    assert ((half - 1).abs() <= (full - 1).abs() + 1e-6).all()


def test_joint_codes_tell_combinations_apart() -> None:
    codes = joint_codes([torch.tensor([0, 0, 1, 1, -1, 0]), torch.tensor([2, 3, 2, 3, 2, 2])])
    assert codes[4] == -1
    assert codes[0] == codes[5]
    assert len(set(codes[:4].tolist())) == 4
    assert joint_codes([torch.tensor([-1, -1])]).tolist() == [-1, -1]
