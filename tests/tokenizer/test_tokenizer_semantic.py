"""Teachers, and where published weights are found: local file, cache, hub, in this order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import imagefolder
from imagefolder.config import TokenizerConfig
from imagefolder.tokenizer.semantic import Teacher, pretrained_vit
from imagefolder.weights import pretrained
from imagefolder.zoo import TOKENIZERS

NAME = "vit_tiny_patch16_224"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, an empty cache, and a hub that does not answer."""
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "weights").mkdir()
    return tmp_path


def tiny(name: str = "vit_small_patch14_dinov2.lvd142m", **options: Any) -> nn.Module:
    return timm.create_model(name, **{"num_classes": 0, "embed_dim": 32, "depth": 1, "num_heads": 2, **options})


def test_weights_in_the_folder_are_used_without_a_network(no_weights: Path) -> None:
    state = timm.create_model(NAME, num_classes=1000).state_dict()
    save_file(state, no_weights / "weights" / f"{NAME}.safetensors")
    loaded = pretrained(NAME)
    assert torch.equal(loaded.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])
    # At other patch and image sizes timm resamples, as for the released models
    config = TokenizerConfig(backbone=NAME, image_size=64, patch_size=8, scales=(2,), semantic="none")
    resampled = pretrained_vit(config)
    assert resampled.pos_embed.shape == (1, 1 + 64, 192)
    assert torch.equal(resampled.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])


def test_missing_weights_are_reported_at_once_with_all_possible_locations(no_weights: Path) -> None:
    clock = time.monotonic()
    with pytest.raises(imagefolder.InputError) as caught:
        pretrained_vit(TOKENIZERS["MSVR10P2-4096"])
    assert time.monotonic() - clock < 10  # the hub client itself would retry for most of a minute
    text = str(caught.value)
    for part in (
        "vit_base_patch14_dinov2.lvd142m.safetensors", "timm/vit_base_patch14_dinov2.lvd142m", "cannot be reached",
        str(no_weights / "weights"), str(no_weights / "torch" / "checkpoints"),
    ):  # fmt: skip
        assert part in text
    assert "\n" not in text


def test_broken_and_unpublished_weights_are_refused(no_weights: Path) -> None:
    (no_weights / "weights" / f"{NAME}.safetensors").write_bytes(b"broken")
    with pytest.raises(imagefolder.InputError, match=rf"{NAME} could not be loaded from .*{NAME}\.safetensors"):
        pretrained(NAME)
    with pytest.raises(imagefolder.InputError, match="no weights of 'vit_unheard_of'"):
        pretrained("vit_unheard_of")


def test_the_teacher_normalises_images_as_in_its_pretraining() -> None:
    teacher = Teacher(tiny(img_size=28).eval())
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    with torch.no_grad():
        expected = teacher.vit(((images + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None])
        torch.testing.assert_close(teacher(images), expected)
    clip = Teacher(timm.create_model("vit_base_patch16_clip_224.openai", embed_dim=32, depth=1, num_heads=2))
    assert clip.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch14_reg4_dinov2.lvd142m", {}),
        ("vit_small_patch14_dinov2.lvd142m", {"depth": 2, "global_pool": "avg"}),
        ("vit_base_patch16_clip_224.openai", {"depth": 3}),
        ("deit3_small_patch16_224", {"depth": 2, "class_token": False, "global_pool": "avg"}),
    ],
)
def test_the_class_feature_is_that_of_the_whole_network(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    vit = tiny(name, **{"img_size": 56 if "14" in name else 64, **options}).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.rand(3, 3, vit.patch_embed.img_size[0], vit.patch_embed.img_size[0]) * 2 - 1
    teacher = Teacher(vit)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), vit(((images + 1) / 2 - teacher.mean) / teacher.std))


def test_teacher_resizes_images_of_another_size() -> None:
    teacher = Teacher(tiny(img_size=28).eval())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        resized = F.interpolate(images, (28, 28), mode="bicubic", antialias=True)
        torch.testing.assert_close(teacher(images), teacher(resized))


@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize("registers", ["", "reg4_"])
def test_every_dinov2_backbone_builds_and_aligns_its_latents(size: str, registers: str) -> None:
    backbone = f"vit_{size}_patch14_{registers}dinov2.lvd142m"
    tokenizer = imagefolder.load_tokenizer(
        "MSVR10P2-4096", backbone=backbone, depth=1, image_size=64, scales=(1, 3), dropout_start=1
    )
    tokens = tokenizer.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert tokens.shape == (1, 2, 10)
    assert tokenizer.decode(tokens).shape == (1, 3, 64, 64)
    vit = tokenizer.encoder.vit
    assert vit.num_prefix_tokens == (5 if registers else 1)
    assert tokenizer.latents(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 32, 3, 3)
