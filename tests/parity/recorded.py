"""The recorded vectors: synthetic weights under the authors' names, and the deviation of our numbers from theirs."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from synthetic_weights import tensor_for
from torch import Tensor

from imagefolder.tokenizer.semantic import Teacher

HERE = Path(__file__).parent
BACKBONE = "vit_small_patch14_dinov2.lvd142m"
TEACHER = "semantic_model."  # prefix of the frozen teacher in a tokenizer's state dict
_TABLES = ("lvl1LC", "lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def authors_state(shapes: dict[str, list[int]], prefix: str = "") -> dict[str, Tensor]:
    """A state dict with the authors' names and shapes; tables that hold no weights are zero."""
    return {
        name: torch.zeros(shape) if name.endswith(_TABLES) else tensor_for(prefix + name, shape)
        for name, shape in shapes.items()
    }


def write_tokenizer(path: Path, state: dict[str, Tensor]) -> Path:
    """A tokenizer file as the authors' training writes it, with averaged weights among others."""
    wrong = {name: value + 1 for name, value in state.items()}
    torch.save(
        {"model": wrong, "ema": state, "optimizer": {}, "steps": 7, "args": argparse.Namespace(vit="small")}, path
    )
    return path


def teacher_of(state: dict[str, Tensor]) -> Teacher:
    """The frozen teacher in a tokenizer's state dict."""
    vit = timm.create_model(BACKBONE, img_size=256, patch_size=16, num_classes=0)
    own = {name.removeprefix(TEACHER): value for name, value in state.items() if name.startswith(TEACHER)}
    vit.load_state_dict(own)
    return Teacher(vit.eval())


def deviation(ours: Tensor, recorded: np.ndarray) -> float:
    """Largest difference as a share of the recorded tensor's standard deviation."""
    theirs = torch.from_numpy(recorded).float()
    return float((ours.detach() - theirs).abs().max() / theirs.std())
