"""The compact network: it trains, resumes, opens what it saved, and does not depend on its windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage

from conceptkit.errors import InputError
from conceptkit.pathology import nucleus_training
from conceptkit.pathology.agreement import agreement
from conceptkit.pathology.compact import BUNDLED, REACH, Compact, compact_of, load_compact, nuclei_of, save_compact
from conceptkit.pathology.compact_network import STRIDE, CompactNetwork, depth_of, folded, loss_of
from conceptkit.pathology.nucleus_training import sample_of, train_compact
from tests.test_nuclei import drawn_tissue

CPU = torch.device("cpu")
ABOUT = {"threshold": 0.5, "apart": 1.25}


def network(types=0, seed=0):
    torch.manual_seed(seed)
    return CompactNetwork(types)


def model(**about):
    made = network(len(about.get("types", ())))
    return compact_of(made.state_dict(), {**ABOUT, **about}, CPU)


def test_folding_changes_nothing():
    made = network()
    for _ in range(3):  # statistics of their own
        made(torch.rand(2, 3, 64, 64))
    made.eval()
    images = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(made)(images), made(images), atol=1e-5, rtol=1e-4)


def test_maps_do_not_depend_on_windows():
    image = drawn_tissue(0.25, 130, number=80)[0]
    whole, cut = model(), model()
    cut.window = 320
    assert max(image.shape) > 320
    np.testing.assert_allclose(cut.maps(image), whole.maps(image), atol=1e-5)


def test_the_margin_of_windows_is_what_maps_depend_on():
    made = network().eval()
    with torch.no_grad():  # positive everywhere, so that no path to a pixel is closed
        for parameter in made.parameters():
            parameter.abs_()
    side, reach = 320, 0
    for place in (side // 2 + k for k in (0, 1, STRIDE // 2, STRIDE - 1)):
        images = torch.rand(1, 3, side, side, requires_grad=True)
        made(images)[0, :, place, place].sum().backward()
        rows = torch.nonzero(images.grad.abs().sum(dim=(0, 1, 3)))
        reach = max(reach, place - int(rows.min()), int(rows.max()) - place)
    assert REACH - STRIDE < reach <= REACH


def test_depth_is_one_in_the_middle_and_small_at_the_rim():
    labels = np.zeros((40, 60), np.int32)
    y, x = np.indices(labels.shape)
    labels[np.hypot(y - 20, x - 20) < 12] = 1
    labels[(np.hypot(y - 20, x - 36) < 12) & (labels == 0)] = 2
    depth = depth_of(labels)
    assert (depth[labels == 0] == 0).all()
    assert [depth[labels == k].max() for k in (1, 2)] == [1, 1]
    touching = (labels == 1) & ndimage.binary_dilation(labels == 2)
    assert depth[touching].max() < 0.15
    assert (depth_of(np.zeros((8, 8), int)) == 0).all()


def test_nuclei_of_true_maps_are_the_nuclei():
    _, labels = drawn_tissue(0.25, 80, number=60)
    labels = labels + 0
    labels[:, 1:][(labels[:, 1:] == 0) & (labels[:, :-1] > 0)] = 0
    maps = np.stack([(labels > 0).astype(np.float32), depth_of(labels)])
    found = agreement(nuclei_of(maps, 0.5, 1.5, 0.25), labels)
    assert found.aji > 0.98
    assert found.found == found.drawn


def test_pixels_that_are_not_known_do_not_count():
    maps = torch.randn(1, 2, 16, 16)
    inside, known = (torch.rand(2, 1, 16, 16) > 0.5).float()
    depth = inside * torch.rand(1, 16, 16)
    changed = torch.where(known == 0, 1 - inside, inside)
    first, second = (loss_of(maps, truth, depth * known, known) for truth in (inside, changed))
    torch.testing.assert_close(first, second)
    assert loss_of(maps, inside, depth) != loss_of(maps, changed, depth)


def test_it_learns_and_resumes_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(nucleus_training, "CROP", 64)
    monkeypatch.setattr(nucleus_training, "EVERY", 10)
    monkeypatch.setattr(nucleus_training, "THRESHOLDS", (0.5,))
    monkeypatch.setattr(nucleus_training, "APARTS", (1.5,))
    samples = [sample_of(*drawn_tissue(0.25, 40, seed=k, number=20), 0.25) for k in range(3)]
    start = model()
    given = {"steps": 30, "patience": 9}
    whole, state = train_compact(samples[:2], samples[2:], start, **given)
    assert [step for step, _ in state.history] == [0, 10, 20, 30]
    assert state.best > state.history[0][1] + 0.05

    class StopError(Exception):
        pass

    def stop(step, steps):
        if step == 15:
            raise StopError

    with pytest.raises(StopError):
        train_compact(samples[:2], samples[2:], start, **given, folder=tmp_path, key="a", progress=stop)
    steps = []
    resumed, again = train_compact(
        samples[:2], samples[2:], start, **given, folder=tmp_path, key="a", progress=lambda s, n: steps.append(s)
    )
    assert steps[0] == 11
    assert again == state
    assert all(torch.equal(v, whole.state[k]) for k, v in resumed.state.items())
    other, _ = train_compact(samples[:2], samples[2:], start, steps=1, folder=tmp_path, key="b")
    assert not torch.equal(other.state["maps.bias"], whole.state["maps.bias"])


def test_training_stops_when_it_no_longer_gets_better(monkeypatch):
    monkeypatch.setattr(nucleus_training, "CROP", 32)
    monkeypatch.setattr(nucleus_training, "EVERY", 2)
    monkeypatch.setattr(nucleus_training, "RATE", 0.0)
    samples = [sample_of(*drawn_tissue(0.25, 20, seed=k, number=6), 0.25) for k in range(2)]
    _, state = train_compact(samples[:1], samples[1:], model(), steps=50, patience=2)
    assert state.step <= state.best_step + 4 < 50


def test_training_needs_nuclei_on_both_sides():
    empty = sample_of(np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), np.int32), None)
    with pytest.raises(InputError, match="images of training and of validation need annotated nuclei"):
        train_compact([empty], [empty], model())


def test_what_is_saved_is_opened(tmp_path):
    made = network(2)
    save_compact(made.state_dict(), {"threshold": 0.4, "apart": 2.0, "types": ["a", "b"]}, tmp_path / "w.safetensors")
    opened = load_compact(tmp_path / "w.safetensors", device="cpu")
    assert (opened.threshold, opened.apart, opened.types) == (0.4, 2.0, ("a", "b"))
    image = drawn_tissue(0.25, 30, number=8)[0]
    direct = compact_of(
        {k: v.half().float() for k, v in made.state_dict().items()}, {**ABOUT, "types": ["a", "b"]}, CPU
    )
    np.testing.assert_allclose(opened.maps(image), direct.maps(image), atol=1e-6)
    assert (tmp_path / "w.safetensors").stat().st_size < 2e6


@pytest.mark.parametrize("kind", ["missing", "text", "other"])
def test_other_files_are_refused(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    if kind == "text":
        path.write_text("weights")
    if kind == "other":
        save_file({"a": torch.zeros(1)}, path, metadata={"conceptkit": '{"schema": "conceptkit/maskrcnn/1"}'})
    message = "not found" if kind == "missing" else "is not a checkpoint of conceptkit's compact"
    with pytest.raises(InputError, match=message):
        load_compact(path)


def test_types_and_confidence_are_those_of_the_pixels():
    class Two(torch.nn.Module):
        """Two nuclei: the left one sure and of type 1, the right one less so and of type 0."""

        def forward(self, images):
            maps = torch.full((1, 4, *images.shape[2:]), -9.0)
            maps[:, :2, 8:24, 8:24] = 4.0
            maps[:, :2, 8:24, 40:56] = 1.0
            maps[:, 3, :, :32], maps[:, 2, :, 32:] = 2.0, 2.0
            return maps

    made = Compact(Two(), {}, CPU, ("round", "long"))
    found = made.detailed(np.zeros((32, 64, 3), np.uint8), 0.25)
    assert list(found.types.values()) == ["long", "round"]
    assert list(found.confidence.values()) == pytest.approx([0.982, 0.731], abs=1e-3)
    assert (made(np.zeros((32, 64, 3), np.uint8), 0.25) == found.labels).all()


@pytest.mark.parametrize("shape", [(9, 200), (33, 47), (16, 16)])
def test_images_of_any_size(shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    for mpp in (None, 0.1, 0.5, 1.9):
        assert model().segment(image, mpp).shape == shape


@pytest.mark.skipif(not BUNDLED.is_file(), reason="no bundled weights")
def test_the_bundled_weights_find_drawn_nuclei():
    assert BUNDLED.stat().st_size < 2e6
    opened = load_compact(BUNDLED, device="cpu")
    for mpp in (0.25, 0.5):
        image, labels = drawn_tissue(mpp, 80)
        found = agreement(opened.segment(image, mpp), labels)
        assert found.dice > 0.8
        assert found.aji > 0.65
