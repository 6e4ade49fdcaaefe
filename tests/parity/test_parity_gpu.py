"""The recorded outputs again, on a GPU with torch's default settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import BACKBONE, HERE, authors_state, deviation, write_tokenizer
from test_parity_training import Pass

import imagefolder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(
    ("case", "name"), [("tok_small_MSVR10P2-4096", "MSVR10P2-4096"), ("tok_bsq4096", "MSBR10P2-4096")]
)
def test_tokens_and_maps_of_float32(case: str, name: str, tmp_path: Path) -> None:
    shapes, recorded = json.loads((HERE / f"{case}.json").read_text())["state_dict"], np.load(HERE / f"{case}.npz")
    path = write_tokenizer(tmp_path / "best_ckpt.pt", authors_state(shapes))
    tokenizer = imagefolder.load_tokenizer(name, path, device="cuda", backbone=BACKBONE)
    tokens = tokenizer.encode(torch.from_numpy(recorded["image"]).float().cuda() / 127.5 - 1).cpu()
    assert (tokens.numpy() == recorded["tokens"]).mean() >= 0.999
    recorded_tokens = torch.from_numpy(recorded["tokens"]).long().cuda()
    assert deviation(tokenizer.quantizer.decode(recorded_tokens).cpu(), recorded["f_hat"]) < 1e-5


@pytest.mark.parametrize(("kind", "pieces"), [("rel", 1), ("rel", 4), ("vq", 1), ("vp2", 2)])
def test_losses_and_gradients_of_training(kind: str, pieces: int, tmp_path: Path) -> None:
    """The backward pass of phi uses TF32 by default, hence the larger tolerance."""
    Pass(kind, tmp_path, pieces, torch.device("cuda")).assert_recorded(gradients=5e-3)
