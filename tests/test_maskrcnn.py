"""Mask R-CNN from random weights: it trains a step, opens what it saved, and puts windows together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conceptkit.errors import InputError
from conceptkit.pathology import maskrcnn
from conceptkit.pathology.maskrcnn import MaskRCNN, build, load_maskrcnn, save_maskrcnn, train_maskrcnn
from conceptkit.pathology.nuclei import open_method


class Discs(nn.Module):
    """Stands for a perfect network: it finds the dark connected pieces of a window."""

    def forward(self, images):
        from scipy import ndimage

        labels, n = ndimage.label(images[0][0].cpu().numpy() < 0.5)
        masks = np.stack([labels == k for k in range(1, n + 1)]) if n else np.zeros((0, *labels.shape))
        return [{"scores": torch.full((n,), 0.9), "masks": torch.from_numpy(masks[:, None].astype(np.float32))}]


def discs(height, width, seed=0):
    image = np.full((height, width, 3), 255, dtype=np.uint8)  # nuclei are dark on glass
    y, x = np.indices((height, width))
    rng = np.random.default_rng(seed)
    inside = ((y % 37 - 18) ** 2 + (x % 41 - 20) ** 2) < rng.integers(60, 110)
    image[inside] = 0
    return image


@pytest.mark.parametrize("shape", [(60, 70), (256, 300), (700, 513), (257, 1000)])
def test_windows_find_each_nucleus_once(shape):
    from scipy import ndimage

    image = discs(*shape)
    expected, n = ndimage.label(image[..., 0] < 128)
    model = MaskRCNN(Discs(), 0.25, torch.device("cpu"))
    labels = model.segment(image)
    assert labels.shape == shape
    assert labels.max() == n
    pairs = {(a, b) for a, b in zip(expected[expected > 0], labels[expected > 0], strict=True)}
    assert len(pairs) == n  # each piece is one label, and no label is two pieces
    np.testing.assert_array_equal(labels > 0, expected > 0)


def test_another_resolution_is_brought_to_that_of_the_training():
    image = discs(200, 210)
    model = MaskRCNN(Discs(), 0.25, torch.device("cpu"))
    small = image[::2, ::2]
    labels = model.segment(small, 0.5)
    assert labels.shape == small.shape[:2]
    assert abs(int(labels.max()) - int(model.segment(image, 0.25).max())) <= 2


def few(network):
    """Keep a network of random weights from proposing a thousand nuclei."""
    network.roi_heads.detections_per_img = 4
    for limits in (network.rpn._pre_nms_top_n, network.rpn._post_nms_top_n):
        limits.update(training=40, testing=20)
    return network


@pytest.fixture(scope="module")
def trained():
    images = [discs(64, 64, k) for k in range(2)]
    labels = [(i[..., 0] < 128).astype(np.int32) for i in images]
    from scipy import ndimage

    labels = [ndimage.label(m)[0] for m in labels]
    torch.manual_seed(0)
    network = few(build(weights="random"))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    told = []
    model = train_maskrcnn(
        images, labels, epochs=1, batch_size=1, device="cpu", network=network, progress=lambda *a: told.append(a)
    )
    return model, before, told


def test_a_step_of_training_changes_the_network(trained):
    model, before, told = trained
    assert told[0][:2] == (1, 1)
    assert 0 <= told[0][2] <= 1
    after = model.network.state_dict()
    changed = [k for k, v in before.items() if v.dtype.is_floating_point and not torch.equal(v, after[k])]
    assert any(k.startswith("roi_heads.mask") for k in changed)
    assert any(k.startswith("backbone.body.layer4") for k in changed)


def test_what_was_saved_opens_as_a_method(trained, tmp_path):
    model = trained[0]
    path = tmp_path / "deep" / "nuclei.safetensors"
    save_maskrcnn(model, path)
    again = load_maskrcnn(path, device="cpu")
    assert again.mpp == model.mpp
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key])
    few(again.network)
    assert open_method("maskrcnn", weights=path, device="cpu") is not None
    labels = again.segment(discs(64, 80), 0.25)
    assert labels.shape == (64, 80)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for bad, sentence in (
        (tmp_path / "bad.safetensors", "is not a checkpoint"),
        (tmp_path / "none", "not found"),
    ):
        with pytest.raises(InputError, match=sentence):
            load_maskrcnn(bad)


def test_a_small_patch_keeps_its_scale():
    torch.manual_seed(0)
    network = few(build(weights="random"))
    seen = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    labels = MaskRCNN(network, 0.25, torch.device("cpu"), score=0.0).segment(image)
    assert labels.shape == (100, 120)
    mean, sd = (torch.tensor(v)[:, None, None] for v in (network.transform.image_mean, network.transform.image_std))
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    assert seen[0].shape == (3, 256, 256)
    torch.testing.assert_close(seen[0][:, :100, :120] * sd + mean, pixels, atol=1e-5, rtol=0)
    assert (seen[0] * sd + mean)[:, 101:, 121:].min() > 0.999  # glass
    with torch.inference_mode():
        network([pixels])
    assert seen[1].shape != seen[0].shape  # control: as it is, torchvision enlarges it


def test_small_images_are_trained_on_at_their_scale():
    image = discs(90, 70)
    drawn = (image[..., 0] < 128).astype(np.int32)
    pixels, target = maskrcnn._draw(image, drawn, np.random.default_rng(0))
    assert pixels.shape == (3, 256, 256)
    assert target["masks"].shape == (1, 256, 256)
    assert int(target["masks"].sum()) == int(drawn.sum())
    np.testing.assert_array_equal(target["masks"][0, :70, :70] > 0, pixels[0, :70, :70] < 0.5)


def test_what_cannot_be_trained_on():
    image = discs(64, 64)
    for labels, options, sentence in (
        ([np.zeros((64, 63), int)] * 2, {}, "labels: one per image"),
        ([np.zeros((64, 64), int)], {}, "labels: one per image"),
        ([np.zeros((64, 64), int)] * 2, {"held_out": 2}, "held_out: must leave"),
        ([np.zeros((64, 64), int)] * 2, {"epochs": 0}, "epochs: must be at least 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            train_maskrcnn([image] * 2, labels, **options)
    with pytest.raises(InputError, match="device: must be auto"):
        maskrcnn.device_of("gpux")
