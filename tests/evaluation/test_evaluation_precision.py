"""What bfloat16 costs, as the command prints it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import imagefolder.fused as fused
from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.evaluation.precision import compare
from imagefolder.training.tokenizer import new_tokenizer
from imagefolder.zoo import TOKENIZERS

NAME = "mini-MSVR3P2-256"


def test_tokens_and_images_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = TOKENIZERS[NAME]
    save_checkpoint(tmp_path, new_tokenizer(config), config)
    compare(NAME, str(tmp_path), number=20)
    shown = capsys.readouterr().out
    assert f"{NAME} on 20 test images of digits" in shown
    shares = [float(share) for share in re.findall(r"([\d.]+)%", shown)]
    fused_too = fused._is_available()
    assert len(shares) == config.branches * len(config.scales) + fused_too
    assert all(50 < share <= 100 for share in shares)
    assert ("with fused and with torch's own operations" in shown) is fused_too
    assert len(re.findall(r"[\d.]+ dB", shown)) == 3
