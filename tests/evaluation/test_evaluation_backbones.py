"""Feature spaces of timm's networks, on small ones with random weights, and FDr-6."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from imagefolder import weights
from imagefolder.data.images import DataSplits
from imagefolder.evaluation.backbones import DINO_SPACE, OTHER_SPACES, Backbone, backbone_extractor, dino_at
from imagefolder.evaluation.ratio import VALIDATION, frechet_ratio
from imagefolder.evaluation.results import Measurement, Protocol, Result
from imagefolder.evaluation.spaces import absent_spaces
from imagefolder.files import file_sha256
from imagefolder.weights import WeightsAbsent

VIT, CONVNET = "vit_tiny_patch16_224.augreg_in21k", "convnext_atto.d2_in1k"
DINO = "vit_small_patch14_dinov2.lvd142m"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return tmp_path


def put(folder: Path, name: str, **shape: object) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, **shape).eval()
    save_file(net.state_dict(), folder / f"{name}.safetensors")
    return net


@pytest.mark.parametrize("name", [VIT, CONVNET])
def test_features_are_the_networks_prepared_as_it_was_trained(folder: Path, name: str, splits: DataSplits) -> None:
    net, images = put(folder, name), splits.test.images[:3]
    extractor = backbone_extractor(Backbone("other-", name))
    config = net.pretrained_cfg
    pixels = F.interpolate(images.float(), size=config["input_size"][-1], mode="bicubic", antialias=True)
    mean, std = (torch.tensor(config[part])[:, None, None] for part in ("mean", "std"))
    with torch.no_grad():
        expected = net((pixels.clamp(0, 255) / 255 - mean) / std)
    torch.testing.assert_close(extractor(images).pooled, expected, rtol=1e-4, atol=1e-5)
    assert (extractor.name, extractor.sha256) == (name, file_sha256(folder / f"{name}.safetensors"))
    assert (extractor.reference, extractor.prefix) == ("training", "other-")


def test_dinov2_is_torch_fidelitys_extractor(folder: Path, splits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, DINO)
    images = splits.test.images[:2]
    extractor = backbone_extractor(replace(DINO_SPACE, timm=DINO))
    assert (extractor.name, extractor.prefix, extractor.widths.pooled) == ("dinov2-vit-l-14", "dinov2-", 384)
    net = timm.create_model(DINO, num_classes=0)
    net.load_state_dict(timm.models.load_state_dict(str(folder / f"{DINO}.safetensors")))
    monkeypatch.setattr(torch.hub, "load", lambda *_: dino_at(net, 224))
    theirs = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    with torch.no_grad():
        (expected,) = theirs(images)
    torch.testing.assert_close(extractor(images).pooled, expected, rtol=1e-4, atol=1e-5)


def test_positions_are_interpolated_as_dinov2_does() -> None:
    """New position i lies at (i + 0.5) * 37 / 16.1 - 0.5 of the old ones; timm would divide by 16."""
    vit = timm.create_model(DINO, num_classes=0, depth=1)
    ramp = torch.arange(37.0).repeat(37, 1).flatten()  # grows by one from column to column
    with torch.no_grad():
        vit.pos_embed[0, 1:] = ramp[:, None]
    table = dino_at(vit, 224).pos_embed[0, 1:, 0].reshape(16, 16).detach()
    at = (torch.arange(16) + 0.5) * 37
    # Bicubic interpolation is off a straight line by up to 0.05
    assert float((table[5] - (at / 16.1 - 0.5))[9:14].abs().max()) < 0.06
    assert float((table[5] - (at / 16 - 0.5))[9:14].abs().max()) > 0.12


def test_absent_weights_are_named_and_nothing_is_downloaded(folder: Path) -> None:
    lines = absent_spaces(published=True)
    assert len(lines) == 5
    for line, backbone in zip(lines, (DINO_SPACE, *OTHER_SPACES), strict=True):
        assert f"{backbone.timm}.safetensors" in line
        assert str(folder) in line
        with pytest.raises(WeightsAbsent):
            backbone_extractor(backbone)
    assert {backbone.timm for backbone in (DINO_SPACE, *OTHER_SPACES)} <= set(weights.BACKBONES)


def measured(name: str, value: float, floor: float | None) -> Measurement:
    protocol = Protocol(name, 1, "samples against images", "ImageNet", "torch-fidelity", name, "0" * 64, False)
    return Measurement(protocol, value, 1_281_167, 50_000, floor=floor)


def test_the_ratio_is_the_mean_over_six_spaces() -> None:
    result = Result([measured(name, value * (i + 1), value) for i, (name, value) in enumerate(VALIDATION.items())])
    (ratio,) = frechet_ratio(result).measurements
    assert ratio.value == pytest.approx(3.5)
    assert (ratio.protocol.name, ratio.n_generated) == ("FDr-6", 50_000)


@pytest.mark.parametrize("name", [name for name in VALIDATION if name != "gFID"])
def test_the_ratio_needs_all_six_and_the_published_networks(name: str) -> None:
    whole = Result([measured(each, value, value) for each, value in VALIDATION.items()])
    without = frechet_ratio(Result([m for m in whole.measurements if m.protocol.name != name]))
    assert without.measurements == []
    assert without.notes == [f"FDr-6 not measured: it needs {name}"]
    for floor, word in ((VALIDATION[name] * 1.5, "another one"), (None, "not known")):
        other = [m if m.protocol.name != name else replace(m, floor=floor) for m in whole.measurements]
        found = frechet_ratio(Result(other))
        assert found.measurements == []
        assert name in found.notes[0]
        assert word in found.notes[0]


def test_there_is_no_ratio_where_no_published_space_is_measured() -> None:
    nothing = frechet_ratio(Result([measured("proxy-gFID", 1.0, 1.0)]))
    assert nothing.measurements == nothing.notes == []
