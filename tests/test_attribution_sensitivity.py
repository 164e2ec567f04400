"""Derivatives at a layer: exact chain rule of pooling, signs, what stays as it was, and what cannot be done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conceptkit.attribution.outputs import choose_outputs, watch_outputs
from conceptkit.attribution.sensitivity import Layout, check_layer, moved_by, pooled_gradients
from conceptkit.errors import InputError
from conceptkit.models.guided import MAIN, GuidedModel, Task

HEIGHT, WIDTH, CHANNELS = 4, 6, 5


class Maps(nn.Module):
    """A convolution, its mean over positions, and a linear layer or one that bends."""

    def __init__(self, *, bent: bool, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.act = nn.ReLU(inplace=True) if bent else nn.Identity()
        self.late = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) if bent else nn.Identity()
        self.fc = nn.Linear(CHANNELS, classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.fc(
            torch.tanh(self.late(x)).mean((2, 3)) if not isinstance(self.late, nn.Identity) else x.mean((2, 3))
        )


class Patches(nn.Module):
    """Tokens behind one class token, mixed without attention."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.embed = nn.Linear(3, CHANNELS)
        self.block = nn.Identity()
        self.mix = nn.Linear(HEIGHT * WIDTH + 1, 2)
        self.fc = nn.Linear(2 * CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2).transpose(1, 2))
        tokens = self.block(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))
        return self.fc(torch.tanh(self.mix(tokens.transpose(1, 2))).flatten(1))


class ChannelsLast(nn.Module):
    """Maps kept as (n, h, w, c), as some of timm's transformers do."""

    output_fmt = "NHWC"

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Linear(3, CHANNELS)
        self.fc = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.stage(x.permute(0, 2, 3, 1))).pow(2).mean((1, 2)))


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(n=7):
    return torch.randn(n, 3, HEIGHT, WIDTH)


def gradients(module, layer, x, **options):
    outputs = choose_outputs(module, x[:2], options.pop("targets", None))
    return outputs, pooled_gradients(module, layer, outputs, [x[:4], x[4:]], **options)


# --- the chain rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_on_a_linear_network_the_sensitivity_is_the_dot_product(method):
    module, x = Maps(bent=False).eval(), images()
    _, G = gradients(module, "norm", x, method=method)
    v = np.random.default_rng(0).normal(size=CHANNELS)
    weight = module.fc.weight.detach().double().numpy()
    for k in range(3):
        # The logit is fc(mean over positions): moving the pooled activation by δ·v moves it by δ·(w·v), image or no.
        np.testing.assert_allclose(G[k] @ v, weight[k] @ v, rtol=1e-5)


def test_the_mean_of_the_gradient_would_be_wrong_by_the_number_of_positions():
    module, x = Maps(bent=False).eval(), images()
    values = module.norm(module.conv(x)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(module.fc(values.mean((2, 3)))[:, 1].sum(), values)
    _, G = gradients(module, "norm", x, targets=["1"])
    np.testing.assert_allclose(G[0], HEIGHT * WIDTH * gradient.mean((2, 3)).numpy(), rtol=1e-5)
    assert not np.allclose(G[0], gradient.mean((2, 3)).numpy(), rtol=0.5)


CASES = [
    (lambda: Maps(bent=True), "act", "gap", CHANNELS),
    (lambda: Maps(bent=True), "conv", "max", CHANNELS),
    (lambda: Maps(bent=True), "late", "flatten", CHANNELS * HEIGHT * WIDTH),
    (lambda: Maps(bent=True), "conv", "gap", CHANNELS),
    (Patches, "block", "gap", CHANNELS),
    (Patches, "block", "tokens", CHANNELS),
    (Patches, "block", "cls", CHANNELS),
    (ChannelsLast, "stage", "gap", CHANNELS),
    (ChannelsLast, "stage", "flatten", CHANNELS * HEIGHT * WIDTH),
]


@pytest.mark.parametrize(("make", "layer", "pool", "width"), CASES)
def test_the_derivative_is_what_moving_the_pooled_activation_by_little_does(make, layer, pool, width):
    module, x = make().eval().double(), images(5).double()
    outputs, G = gradients(module, layer, x, pool=pool)
    assert G.shape == (len(outputs), 5, width)
    from conceptkit.models.inference import pooled_activations

    layout, step = Layout(module, layer, x, pool=pool), torch.randn(width).double()
    before = pooled_activations(module, x, [layer], pool=pool)[layer]
    with moved_by(layout, step):
        after = pooled_activations(module, x, [layer], pool=pool)[layer]
    assert torch.allclose(after - before, step.float().expand_as(before), atol=1e-5)  # the very move that is meant

    def values(size):
        with torch.no_grad(), moved_by(layout, size * step):
            return torch.stack([output.forward(x) for output in outputs]).numpy()

    h = 1e-6  # central differences err by h², far below 1e-5 of these derivatives
    np.testing.assert_allclose(G @ step.numpy(), (values(h) - values(-h)) / (2 * h), rtol=1e-4, atol=1e-7)


def test_batches_make_no_difference():
    module, x = Maps(bent=True).eval(), images()
    outputs = choose_outputs(module, x)
    whole = pooled_gradients(module, "act", outputs, [x])
    np.testing.assert_allclose(pooled_gradients(module, "act", outputs, list(x.split(2))), whole, atol=1e-6)


# --- outputs and their signs -------------------------------------------------------------------------------------


class Features(nn.Module):
    """What a guided network is built on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3))


def guided(classes=("normal", "tumor")):
    tasks = [
        Task(name=MAIN, kind="categorical", classes=classes),
        Task(name="area", kind="continuous", mean=40.0, deviation=8.0),
        Task(name="center", kind="categorical", classes=("A", "B", "C"), adversarial=True),
        Task(name="count", kind="continuous", layer="conv", adversarial=True),
    ]
    return GuidedModel(Features(), CHANNELS, tasks, trunk=(4,), widths={"conv": CHANNELS}).eval()


def test_a_guided_network_is_attributed_to_the_second_class_and_the_first_is_its_negative():
    model, x = guided(), images()
    (usual,), G = gradients(model, "backbone.conv", x)
    assert usual.name == "tumor"
    _, both = gradients(model, "backbone.conv", x, targets=["normal", "tumor"])
    np.testing.assert_array_equal(both[1], G[0])
    np.testing.assert_array_equal(both[0], -G[0])
    # The logit, not its sigmoid, whose derivative would be smaller by p(1 − p).
    assert torch.equal(usual.forward(x), model(x)[MAIN][:, 0])


def test_several_classes_are_all_attributed():
    model, x = guided(("a", "b", "c")), images()
    outputs, _ = gradients(model, "trunk", x)
    assert [output.name for output in outputs] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["center:B", "count", "area"])
def test_a_discouraged_head_has_its_own_sign_not_that_of_the_reversal(name):
    model, x = guided().double(), images().double()
    _, G = gradients(model, "backbone.conv", x, targets=[name])
    step, h = torch.randn(CHANNELS).double(), 1e-6
    layout = Layout(model, "backbone.conv", x)

    def moved(size):
        with torch.no_grad(), moved_by(layout, size * step):
            head, _, label = name.partition(":")
            raw = model(x)[head]
            return raw[:, ("A", "B", "C").index(label)] if label else raw[:, 0] * (8.0 if head == "area" else 1.0)

    expected = ((moved(h) - moved(-h)) / (2 * h)).numpy()
    np.testing.assert_allclose(G[0] @ step.numpy(), expected, rtol=1e-5, atol=1e-8)
    if name != "area":  # the control: through the reversal the sign is the other one
        with torch.enable_grad():
            head, _, label = name.partition(":")
            values = model(x)[head][:, ("A", "B", "C").index(label) if label else 0].sum()
            (turned,) = torch.autograd.grad(values, model.backbone.conv.bias)
        assert float(turned @ step) == pytest.approx(-expected.sum(), rel=1e-4)


def test_what_is_watched_is_in_the_concepts_own_units():
    model, x = guided(), images()
    seen = watch_outputs(model, choose_outputs(model, x))(x)
    raw = model(x)
    torch.testing.assert_close(seen["area"], raw["area"][:, 0] * 8 + 40)
    torch.testing.assert_close(seen["tumor"], raw[MAIN][:, 0])
    torch.testing.assert_close(seen["center:B (probability)"], raw["center"].softmax(1)[:, 1])
    assert set(seen) >= {"count", "center:A (probability)"}
    plain = Maps(bent=True).eval()
    assert set(watch_outputs(plain, choose_outputs(plain, x, ["2"]))(x)) == {"2"}


# --- what stays as it was ----------------------------------------------------------------------------------------


def test_weights_statistics_and_modes_are_left_as_they_were():
    module, x = Maps(bent=True), images()
    module.train()
    module.late.eval()
    module.fc.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    outputs = choose_outputs(module.eval(), x)
    module.train()
    module.late.eval()
    pooled_gradients(module, "act", outputs, [x])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert module.norm.training
    assert not module.late.training
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["fc.weight"]
    assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())


def test_a_network_whose_weights_are_all_frozen_has_the_same_derivatives():
    module, x = Maps(bent=True).eval(), images()
    _, free = gradients(module, "act", x)
    _, frozen = gradients(module.requires_grad_(False), "act", x)
    np.testing.assert_array_equal(free, frozen)


# --- what cannot be done -----------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Everything at which a derivative ends."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, CHANNELS, 1)
        self.cut = nn.Identity()
        self.rounded = Rounded()
        self.pair = Pair()
        self.shared = nn.ReLU()
        self.dead = nn.ReLU()
        self.behind = nn.Linear(CHANNELS, 2)
        self.side = nn.Identity()
        self.fc = nn.Linear(CHANNELS, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(self.early(x)).detach()
        self.rounded(x)
        x, _ = self.pair(self.shared(self.shared(x)))
        x = x + 0 * self.dead(x).sum((1, 2, 3), keepdim=True)
        out = self.fc(x.mean((2, 3)))
        self.side(out * 2)
        return out


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round().long()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


SENTENCES = [
    ("early", r"layer: no gradient of 0 reaches early, because a step between"),
    ("side", r"layer: 0 does not depend on side, which is after it"),
    ("rounded", r"layer: rounded returns torch\.int64, which has no gradient"),
    ("pair", r"layer: pair returns a tuple, not one tensor"),
    ("shared", r"layer: shared runs 2 times in one forward pass"),
    ("behind", r"layer: behind takes no part in the network's forward pass to 0"),
    ("fc", r"layer: fc is the target 0 itself; name a layer before it"),
]


@pytest.mark.parametrize(("layer", "sentence"), SENTENCES)
def test_a_layer_that_cannot_be_differentiated_is_told_in_one_sentence(layer, sentence):
    module, x = Odd().eval(), images(2)
    (output,) = choose_outputs(module, x, ["0"])
    with pytest.raises(InputError, match=sentence) as told:
        check_layer(module, layer, output, x)
    assert str(told.value).count(". ") == 0


def test_a_layer_without_any_effect_is_told():
    module, x = Odd().eval(), images(3)
    outputs = choose_outputs(module, x, ["0"])
    with pytest.raises(InputError, match="the derivative of 0 is zero at dead for all 3 images"):
        pooled_gradients(module, "dead", outputs, [x])
    with pytest.raises(InputError, match="images: at least one is needed"):
        pooled_gradients(module, "dead", outputs, [])


def test_targets_that_do_not_exist_are_told_with_those_that_do():
    x = images(2)
    with pytest.raises(InputError, match=r"target: the network has no class 'tumour'; near names: tumor"):
        choose_outputs(guided(), x, ["tumour"])
    with pytest.raises(InputError, match="target: the network has 12 classes; choose some"):
        choose_outputs(Odd().eval(), x)
    with pytest.raises(InputError, match="target: the network has no class '12'"):
        choose_outputs(Odd().eval(), x, ["12"])
    with pytest.raises(
        InputError, match="model: must return one logit per class and image, this network returns tuple"
    ):
        choose_outputs(Pair(), x)
    with pytest.raises(InputError, match=f"this network returns 3×{HEIGHT}×{WIDTH}"):
        choose_outputs(nn.Identity(), x)


def test_a_network_of_features_alone_is_told():
    features = nn.Flatten()
    features.num_classes = 0
    with pytest.raises(InputError, match="model: this network returns features, not classes"):
        choose_outputs(features, images(2))


def test_a_method_that_does_not_exist_is_told():
    module, x = Maps(bent=True).eval(), images()
    with pytest.raises(InputError, match="method: 'saliency' is not known"):
        pooled_gradients(module, "act", choose_outputs(module, x), [x], method="saliency")
