"""Weights of the recorded vectors: every tensor is regenerated from its name and shape alone."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

POSITIONS = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "latent_tokens",
    "mask_token",
    "lvl_embed",
    "pos_start",
    "pos_1LC",
    "class_emb",
)


def tensor_for(name: str, shape: list[int]) -> Tensor:
    """float32 tensor of a state-dict name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    z = generator.standard_normal(tuple(shape), dtype=np.float64)
    last = name.rsplit(".", 1)[-1]
    if last == "gamma":
        z = 0.5 + 0.1 * z
    elif last.endswith("bias"):
        z = 0.02 * z
    elif len(shape) == 1:
        z = 1.0 + 0.1 * z
    elif "quantize" in name and "embedding" in name:
        pass
    elif any(key in name for key in POSITIONS):
        z = 0.5 * z
    elif last == "scale_mul_1H11":
        z = math.log(4.0) + 0.1 * z
    else:
        z = z / math.sqrt(max(1, math.prod(shape[1:])))
    return torch.from_numpy(z).float()
