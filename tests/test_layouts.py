"""Channels, positions and tokens of a layer: measured, not guessed from the network's family."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import conceptkit as ck
from conceptkit.errors import InputError
from conceptkit.models.guided import layer_width
from conceptkit.models.inference import pooled_activations
from conceptkit.models.layouts import measure_views


def noise(side, n=2, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def timm_model(name, **arguments):
    return lambda: timm.create_model(name, pretrained=False, **arguments)


# Conformance: the pooled width is the width that the layer's own module states


def swin():
    return torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [1, 2, 4, 8], [4, 4])


def convnext():
    config = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([config(16, 32, 1), config(32, None, 1)])


def maxvit():
    sizes = {"input_size": (64, 64), "stem_channels": 8, "partition_size": 2, "head_dim": 4}
    return torchvision.models.MaxVit(**sizes, block_channels=[8, 16], block_layers=[1, 1], stochastic_depth_prob=0.0)


def volo():
    return timm.models.volo.VOLO((1, 1, 1, 1), 64, embed_dims=(16, 32, 32, 32), num_heads=(2, 4, 4, 4))


SAM = {"depth": 2, "embed_dim": 96, "num_heads": 2, "global_attn_indexes": (1,)}

SMALL = {
    "resnet": (timm_model("test_resnet"), 96),
    "efficientnet": (timm_model("test_efficientnet"), 96),
    "nfnet": (timm_model("test_nfnet"), 96),
    "vit": (timm_model("test_vit"), 160),
    "convnext, blocks permute": (timm_model("test_convnext"), 96),
    "convnext, LayerNorm2d": (timm_model("convnext_atto", depths=(1, 1, 1, 1)), 96),
    "mambaout": (timm_model("test_mambaout"), 96),
    "swin": (timm_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), img_size=64, window_size=4), 64),
    "swin v2 cr": (timm_model("swinv2_cr_tiny_224", depths=(1, 1, 1, 1), img_size=64, window_size=4), 64),
    "volo": (volo, 64),
    "samvit": (timm_model("samvit_base_patch16_224", **SAM), 224),
    "mixer": (lambda: timm.models.mlp_mixer.MlpMixer(img_size=64, num_blocks=2, embed_dim=24), 64),
    "coat, a class token per scale": (timm_model("coat_tiny", serial_depths=(1, 1, 1, 1), parallel_depth=1), 224),
    "cait, a class token that joins late": (timm_model("cait_xxs24_224", depth=1), 224),
    "torchvision swin": (swin, 64),
    "torchvision convnext": (convnext, 64),
    "torchvision vit": (lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64), 64),
    "torchvision maxvit": (maxvit, 64),
}

LARGE = {
    name: (timm_model(name), side)
    for name, side in {
        "swinv2_cr_tiny_224": 224,
        "maxvit_pico_rw_256": 256,
        "hiera_tiny_224": 224,
        "mixer_s32_224": 224,
        "volo_d1_224": 224,
        "samvit_base_patch16_224": 224,
        "sequencer2d_s": 224,
        "caformer_s18": 128,
        "davit_tiny": 224,
        "focalnet_tiny_srf": 224,
        "crossvit_tiny_240": 240,
        "xcit_nano_12_p16_224": 224,
        "levit_128s": 224,
        "pit_ti_224": 224,
        "mvitv2_tiny": 224,
        "twins_svt_small": 224,
        "tnt_s_legacy_patch16_224": 224,
        "pvt_v2_b0": 224,
        "nest_tiny": 224,
        "edgenext_xx_small": 256,
        "mobilevit_xxs": 256,
        "efficientformer_l1": 224,
        "gcvit_xxtiny": 224,
        "beit_base_patch16_224": 224,
        "eva02_tiny_patch14_224": 224,
        "vit_small_patch14_reg4_dinov2": 518,
    }.items()
} | {
    name: (getattr(torchvision.models, name), 224)
    for name in ("swin_t", "swin_v2_t", "maxvit_t", "densenet121", "vgg11")
}


def stated_width(module):
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    return module.num_features if isinstance(module, nn.BatchNorm2d) else None


def conforms(make, side):
    """Return how many layers of 3 or 4 axes state a width, after checking that each is pooled to it."""
    torch.manual_seed(0)
    module, seen = make().eval(), {}

    def look(name):
        def hook(own, inputs, output):
            if stated_width(own) and output.ndim > 2 and len(output) == 2:
                seen[name] = stated_width(own)

        return hook

    handles = [part.register_forward_hook(look(name)) for name, part in module.named_modules() if name]
    with torch.inference_mode():
        module(noise(side))
    for handle in handles:
        handle.remove()
    views = measure_views(module, list(seen), noise(side))
    # Only attention inside heads may be refused: its tokens have the class token among them.
    assert not [n for n, v in views.items() if v.unclear and "attn" not in n]
    clear = [name for name in seen if not views[name].unclear]
    found = pooled_activations(module, noise(side), clear, views=views)
    assert {name: found[name].shape for name in clear} == {name: (2, seen[name]) for name in clear}
    return len(clear)


@pytest.mark.parametrize("name", SMALL)
def test_layers_are_pooled_to_the_width_that_they_state(name):
    assert conforms(*SMALL[name]) > 5


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_layers_of_more_networks_are_pooled_to_the_width_that_they_state(name):
    least = 7 if name == "vgg11" else 10  # vgg11 has eight convolutions and no other layer of known width
    assert conforms(*LARGE[name]) > least


# Layouts one by one


class Branches(nn.Module):
    """Maps in both layouts, tokens in both, windows, attention, and a network that takes one size when ``fixed``."""

    def __init__(self, *, fixed=False):
        super().__init__()
        self.fixed = fixed
        self.stem = nn.Conv2d(3, 6, 4, 4)
        names = (
            "first",
            "last",
            "tokens",
            "sequence",
            "windows",
            "time_first",
            "attention",
            "five",
            "single",
            "parameter",
        )
        for name in names:
            setattr(self, name, nn.Identity())
        self.typed = nn.LayerNorm(6)

    def forward(self, x):
        assert not self.fixed or x.shape[-2:] == (32, 32)
        x = self.stem(x)
        flat = x.flatten(2)
        self.first(x), self.last(self.typed(x.permute(0, 2, 3, 1)))
        self.tokens(flat.transpose(1, 2)), self.sequence(flat)
        self.windows(x.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)), self.time_first(flat.permute(2, 0, 1))
        self.attention((flat.transpose(1, 2) @ flat)[:, None].expand(-1, 2, -1, -1))
        self.five(x[:, :, None]), self.single(x.mean((1, 2, 3)))
        return self.parameter(torch.zeros(1, 5, 6))


@pytest.mark.parametrize("fixed", [False, True])
def test_the_layout_is_decided_per_layer(fixed):
    module = Branches(fixed=fixed).eval()
    with torch.inference_mode():
        expected = module.stem(noise(32)).mean((2, 3))
    for layer in ("first", "tokens", "sequence"):
        found = pooled_activations(module, noise(32), [layer])[layer]
        torch.testing.assert_close(found, expected)
    maps = pooled_activations(module, noise(32), ["first", "last"], pool="flatten")
    assert maps["last"].shape == maps["first"].shape == (2, 6 * 8 * 8)
    assert measure_views(module, ["first", "last"], noise(32))["last"].channels == 3


def test_what_has_no_layout_is_refused():
    module = Branches().eval()
    for layer in ("windows", "time_first"):
        with pytest.raises(InputError, match=f"layer: {layer} returns .* and its first axis does not count"):
            pooled_activations(module, noise(32), [layer])
    with pytest.raises(InputError, match="layer: parameter returns 1×5×6 for 2 images"):
        pooled_activations(module, noise(32), ["parameter"])
    with pytest.raises(InputError, match="layer: attention returns 2×64×64, and neither a second image size nor"):
        pooled_activations(module, noise(32), ["attention"])
    with pytest.warns(UserWarning, match="Skipped: attention returns 2×64×64"):
        assert list(pooled_activations(module, noise(32), ["first", "attention", "last"])) == ["first", "last"]
    assert pooled_activations(module, noise(32), ["attention"], pool="flatten")["attention"].shape == (2, 2 * 64 * 64)
    assert pooled_activations(module, noise(32), ["five"])["five"].shape == (2, 6)
    assert pooled_activations(module, noise(32), ["single"])["single"].shape == (2, 1)


def test_measuring_leaves_the_network_and_the_random_state_alone():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(2)).eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    measure_views(module, ["1", "3"], noise(32))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


class Joined(nn.Module):
    """Two branches, joined into a map whose width no module of its own states; 3×3 at 96 pixels."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(3, width, 3, stride=32, padding=1) for width in (4, 6)])

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def test_a_small_map_that_keeps_one_side_at_the_second_size_is_measured_at_a_third():
    module = nn.Sequential(Joined(), nn.AdaptiveAvgPool2d(1)).eval()
    images = noise(96)
    assert module[0](images[:1, :, :48, :72]).shape[2:] == (2, 3)  # the control: one side stays
    assert measure_views(module, ["0"], images)["0"].channels == 1
    assert pooled_activations(module, images, ["0"])["0"].shape == (2, 10)


# Tokens


class Embeddings(nn.Module):
    """Where transformers of Hugging Face keep their tokens; the attributes have the names that ``names`` give."""

    def __init__(self, names, width, *, end):
        super().__init__()
        self.projection = nn.Conv2d(3, width, 16, 16)
        self.end = end
        self.names = list(names)
        for i, (name, count) in enumerate(names.items()):
            shape = (width,) if name == "class_embedding" else (1, count, width)
            setattr(self, name, nn.Parameter(torch.full(shape, 5.0 + i)))

    def forward(self, x):
        x = self.projection(x).flatten(2).transpose(1, 2)
        extra = [getattr(self, name).view(1, -1, x.shape[2]).expand(len(x), -1, -1) for name in self.names]
        return torch.cat([x, *extra] if self.end else [*extra, x], 1)


class Encoder(nn.Module):
    """A vision transformer whose tokens are attributes of its embeddings, or of nothing that is known."""

    def __init__(self, names, *, width=16, end=False):
        super().__init__()
        self.embeddings = Embeddings(names, width, end=end)
        self.layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True)
        self.layernorm = nn.LayerNorm(width)

    def forward(self, x):
        return self.layernorm(self.layer(self.embeddings(x)))[:, 0]


NAMED = {
    "Hugging Face ViT, Phikon": {"cls_token": 1},
    "DINOv2 with registers, Hibou": {"cls_token": 1, "register_tokens": 4},
    "DeiT": {"cls_token": 1, "distillation_token": 1},
    "CLIP": {"class_embedding": 1},
    "torchvision": {"class_token": 1},
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("sides", [(64, 64), (64, 96), (160, 112)])
def test_tokens_of_known_names(name, sides):
    module = Encoder(NAMED[name]).eval()
    images, number = torch.randn(3, 3, *sides), sum(NAMED[name].values())
    seen = {}
    module.layer.register_forward_hook(lambda own, inputs, output: seen.update(x=output))
    with torch.inference_mode():
        module(images)
    patches = sides[0] // 16 * (sides[1] // 16)
    assert seen["x"].shape[1] == patches + number
    expected = {"gap": seen["x"][:, number:].mean(1), "max": seen["x"][:, number:].amax(1), "cls": seen["x"][:, 0]}
    for pool, value in {**expected, "tokens": expected["gap"]}.items():
        found = pooled_activations(module, images, ["layer"], pool=pool)["layer"]
        torch.testing.assert_close(found, value)
    assert measure_views(module, ["layer"], images)["layer"].note == ""
    assert not torch.allclose(seen["x"].mean(1), expected["gap"], atol=1e-3)  # the control: all tokens averaged


@pytest.mark.parametrize(
    ("number", "said"), [(1, "first was taken as the class"), (5, "first 5 were taken as class and")]
)
def test_tokens_of_unknown_names_are_inferred_with_a_note(number, said):
    module = Encoder({"latent_query": number}).eval()
    view = measure_views(module, ["layer"], noise(96))["layer"]
    assert (view.prefix, view.has_class) == (number, number == 1)
    assert f"layer returns {36 + number} tokens for 36 patches; the {said}" in view.note
    if number > 1:
        with pytest.raises(InputError, match="pool: cls needs a class token"):
            pooled_activations(module, noise(96), ["layer"], pool="cls")


def test_tokens_are_counted_from_the_patch_embedding_not_from_the_nearest_square():
    module = Encoder({"latent_query": 5}).eval()
    images = torch.randn(2, 3, 96, 80)  # 6 × 5 patches and 5 tokens: 35, whose nearest square is 25 or 36
    assert measure_views(module, ["layer"], images)["layer"].prefix == 5


@pytest.mark.parametrize("names", [{"cls_token": 1}, {"latent_query": 2}])
def test_tokens_that_are_not_explained_are_refused(names):
    module = Encoder(names, end=True).eval()  # behind the patches
    with pytest.raises(InputError, match=r"layer: layer returns \d+ tokens, which .* do not explain"):
        pooled_activations(module, noise(96), ["layer"])
    assert pooled_activations(module, noise(96), ["layer"], pool="flatten")["layer"].shape[0] == 2


class Linearly(nn.Module):
    """Patches cut by a reshape, as in vit-pytorch: no convolution states their number."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 16 * 16, 8)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

    def forward(self, x):
        x = self.embed(nn.functional.unfold(x, 16, stride=16).transpose(1, 2))
        return self.block(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))[:, 0]


def test_patches_without_a_convolution():
    views = measure_views(Linearly().eval(), ["embed", "block"], noise(64))
    assert (views["embed"].prefix, views["block"].prefix, views["block"].has_class) == (0, 1, True)


def test_a_network_at_another_size_than_it_was_built_for():
    module = timm.create_model("test_vit", pretrained=False, dynamic_img_size=True).eval()
    assert module.patch_embed.num_patches == 100
    views = measure_views(module, ["patch_embed", "blocks.0"], noise(64))
    assert (views["patch_embed"].prefix, views["blocks.0"].prefix) == (0, 1)  # 16 patches, not the 100 it was built for


def test_inferred_tokens_are_said_where_activations_are_read(tmp_path):
    said = []
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    options = {"layers": ["layer"], "store": tmp_path / "a.h5", "device": "cpu", "notify": said.append}
    for _ in range(2):  # the second time all rows are there
        said.clear()
        found = ck.extract(Encoder({"latent_query": 1}), images, **options)
        assert "layer returns 17 tokens for 16 patches; the first was taken as the class token" in said[0]
        options["refresh"] = True
    assert found["layer"].shape == (3, 16)
    said.clear()
    ck.extract(Encoder({"cls_token": 1}), images, **options)
    assert not any("class token" in sentence for sentence in said)


def test_of_several_layers_the_one_without_a_layout_is_skipped_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTKIT_CACHE", str(tmp_path))
    said = []
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = ck.extract(
        Branches(), images, layers=["attention", "first"], store=tmp_path / "a.h5", device="cpu", notify=said.append
    )
    assert list(found.layers) == ["first"]
    assert found.notes[0].startswith("Skipped: attention returns 2×64×64")
    assert said[0] == found.notes[0]
    with pytest.raises(InputError, match="layer: attention returns 2×64×64"):
        ck.extract(Branches(), images, layers=["attention"], store=tmp_path / "b.h5", device="cpu")
    assert not (tmp_path / "b.h5").exists()


def test_a_task_on_channels_last_is_refused():
    module = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), img_size=64, window_size=4).eval()
    with pytest.raises(InputError, match=r"layer: a task needs .*; layers.3 gives 2×2×768, whose channels come last"):
        layer_width(module, "layers.3", size=64)
    assert layer_width(module, "patch_embed.proj", size=64) == 96
