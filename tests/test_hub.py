"""Networks of a hub, opened through the hub's own client against a small hub on the loopback."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load, save
from small_hub import small_hub
from typer.testing import CliRunner

from conceptkit.cli import app
from conceptkit.errors import InputError
from conceptkit.families import ENCODERS
from conceptkit.features.sources import NetworkFeatures
from conceptkit.models import downloads
from conceptkit.models.backbones import _create, open_backbone
from conceptkit.tables.study import load_study

NET = "lab/net"


@pytest.fixture(scope="module")
def files():
    """A tiny network as timm publishes one."""
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=0)
    config = {
        "architecture": "test_vit",
        "num_classes": 0,
        "pretrained_cfg": {
            "mean": [0.7, 0.6, 0.7],
            "std": [0.2, 0.2, 0.2],
            "input_size": [3, 160, 160],
            "fixed_input_size": True,
            "num_classes": 0,
        },
    }
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    return {f"{NET}/config.json": json.dumps(config).encode(), f"{NET}/model.safetensors": save(weights)}


@pytest.fixture
def hub(files, monkeypatch, tmp_path):
    """The hub, in place of the real one, and an empty cache."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it resumes
    with small_hub(dict(files)) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # only whole pieces are kept
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield served


def opened():
    return open_backbone(f"hf-hub:{NET}")


def test_a_complete_download_and_its_copy(hub, files):
    first = opened()
    assert (first.weights, first.preprocessing.mean) == ("published", (0.7, 0.6, 0.7))
    expected = timm.create_model("test_vit", num_classes=0).eval()
    expected.load_state_dict(load(files[f"{NET}/model.safetensors"]))
    image = np.random.default_rng(0).integers(0, 255, (1, 160, 160, 3), dtype=np.uint8)
    x = first.preprocessing(image)
    with torch.no_grad():
        torch.testing.assert_close(first.module(x), expected(x))
    assert hub.downloads("model.safetensors") == [None]
    assert opened().fingerprint() == first.fingerprint()
    assert hub.downloads("model.safetensors") == [None]  # it was kept


def test_a_broken_download_is_resumed(hub, files):
    name = f"{NET}/model.safetensors"
    hub.breaks[name] = [5000, 3000]
    found = opened()
    first, second, third = hub.downloads("model.safetensors")
    assert first is None
    starts = [int(span.removeprefix("bytes=").partition("-")[0]) for span in (second, third)]
    assert starts == [5000, 8000]  # what is there is not downloaded again
    hub.breaks.clear()
    assert found.fingerprint() == opened().fingerprint()


def test_a_download_that_stays_broken_ends_in_a_sentence_and_the_next_run_works(hub):
    hub.breaks[f"{NET}/model.safetensors"] = [4000] + [0] * 20
    with pytest.raises(InputError, match=r"^weights: those of hf-hub:lab/net could not be downloaded \(.*\); use"):
        opened()
    hub.breaks.clear()
    assert opened().weights == "published"


def test_a_file_with_a_wrong_hash_is_refused(hub):
    hub.wrong.add(f"{NET}/model.safetensors")
    with pytest.raises(InputError, match=r"^weights: .* is not what was published"):
        opened()


@pytest.mark.parametrize(("token", "said"), [(None, "no token is set"), ("hf_other", "the token in use has no access")])
def test_a_gated_repository_names_where_access_is_requested(hub, monkeypatch, token, said):
    hub.gated.add(NET)
    hub.allowed.add("hf_mine")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError) as refused:
        opened()
    assert str(refused.value) == (
        f"model: hf-hub:{NET} is gated and {said}; request access at {hub.address}/{NET}, then set HF_TOKEN to a token "
        "of that account."
    )
    assert hub.downloads("model.safetensors") == []
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert opened().weights == "published"


def test_a_name_that_the_hub_does_not_know(hub):
    with pytest.raises(InputError, match=r"model: hf-hub:lab/other was not found at http://127.*set HF_TOKEN"):
        open_backbone("hf-hub:lab/other")


def test_an_encoder_by_name_is_used_as_its_authors_say(hub, files, tmp_path):
    """The repository of UNI2-h holds a small network of the same kind: register tokens and gated layers."""
    preset = ENCODERS["uni2-h"]
    small = {**preset.arguments, "img_size": 224, "patch_size": 14, "depth": 1, "num_heads": 2, "embed_dim": 24}
    torch.manual_seed(0)
    module = _create("vit_giant_patch14_224", small).eval()
    config = {"architecture": "vit_giant_patch14_224", "num_classes": 0, "pretrained_cfg": {"mean": [0.5] * 3}}
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    hub.files |= {
        f"{preset.repository}/config.json": json.dumps(config).encode(),
        f"{preset.repository}/model.safetensors": save(weights),
    }
    hub.gated.add(preset.repository)
    with pytest.raises(InputError, match=f"is gated and no token is set; request access at .*{preset.repository}"):
        open_backbone("uni2-h")
    hub.gated.clear()
    ENCODERS["uni2-h"] = dataclasses.replace(preset, arguments=small)
    try:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(
            tmp_path / "a.png"
        )
        frame = pd.DataFrame({"patch_id": ["a"], "image": ["a.png"], "mpp": [0.25]})
        frame.to_csv(tmp_path / "t.csv", index=False)
        table = load_study(tmp_path / "t.csv").load_table()
        features = NetworkFeatures(table, "uni2-h", ())
        assert (features.layers, features.pool) == (("norm",), "cls")
        [X] = features.read(np.arange(1)).values()
        assert any("uni2-h is used at 0.5 µm per pixel" in note for note in features.notes())
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preset.mean, preset.std))
        pixels = torch.from_numpy(table.pixels(0).copy()).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            expected = module((resized - mean) / std)  # what the authors' call returns: the class token
        torch.testing.assert_close(torch.from_numpy(X), expected, atol=1e-4, rtol=1e-4)
        assert NetworkFeatures(table, "uni2-h", ["blocks.0"], pool="tokens").pool == "tokens"  # a choice of one's own
    finally:
        ENCODERS["uni2-h"] = preset
        del ENCODERS["uni2-h"]


def test_the_published_arguments_build_the_published_width():
    for name, architecture in (("uni2-h", "vit_giant_patch14_224"), ("uni", "vit_large_patch16_224")):
        with torch.device("meta"):
            module = _create(architecture, {"num_classes": 0, **ENCODERS[name].arguments})
        assert module.num_features == ENCODERS[name].width


def test_the_command_line_lists_the_encoders():
    done = CliRunner().invoke(app, ["encoders", "--json", "-"])
    rows = {row["name"]: row for row in json.loads(done.stdout)["encoders"]}
    assert list(rows) == list(ENCODERS)
    assert rows["uni2-h"]["repository"] == "MahmoodLab/UNI2-h"
    shown = CliRunner().invoke(app, ["encoders"]).output
    assert "HF_TOKEN" in shown


def test_without_the_network_a_kept_copy_is_used_and_nothing_else(hub, files, monkeypatch):
    opened()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert not downloads.hub_answers(1.0)
    assert opened().weights == "published"
    with pytest.raises(InputError, match=r"could not be downloaded \(the hub does not answer\)"):
        open_backbone("hf-hub:lab/never")


def test_the_command_line_takes_the_hub_of_the_environment(files, tmp_path):
    with small_hub(dict(files)) as hub:
        hub.gated.add(NET)
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "HF_TOKEN"}
        environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        words = [sys.executable, "-m", "conceptkit", "layers", "--model", f"hf-hub:{NET}"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert f"request access at {hub.address}/{NET}" in done.stderr.replace("\n", " ")
