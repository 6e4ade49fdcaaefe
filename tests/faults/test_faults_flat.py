"""Memory and the number of open files stay flat while training and sampling for long."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import lab
import pytest
import torch

import imagefolder
from imagefolder.config import LossConfig
from imagefolder.training import loop
from imagefolder.training.tokenizer import train_tokenizer
from reproductions.scales import SCALES

STEPS, BATCHES = 2000, 200
GROWTH_MIB, GROWTH_FILES = 24, 2


def use() -> tuple[float, int]:
    """Resident memory in MiB, and open files, of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def assert_flat(seen: list[tuple[float, int]]) -> None:
    """No growth between the first measurement, after the warm-up, and the last."""
    (memory, files), (last_memory, last_files) = seen[0], seen[-1]
    assert last_memory - memory < GROWTH_MIB, seen
    assert last_files - files <= GROWTH_FILES, seen


@pytest.mark.faults
def test_training_for_thousands_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is saved every 50 steps."""
    images = lab.few_digits(32).train
    config = replace(SCALES["mini"].tokenizer, name="tiny", width=32, depth=1, heads=2)
    mini = SCALES["mini"].tokenizer_training
    training = replace(mini, steps=STEPS, batch_size=4, checkpoint_every=50, precision="no")
    loss = LossConfig(perceptual=0.0, semantic=0.0, adversarial=0.0)
    seen, step = [], loop._Runner.step

    def watched(self: loop._Runner, number: int) -> dict[str, torch.Tensor]:
        if number % 250 == 249 and number > 400:
            seen.append(use())
        return step(self, number)

    monkeypatch.setattr(loop._Runner, "step", watched)
    plain = replace(config, semantic="none")
    options = {"training": training, "loss": loss, "teacher": None, "seed": 0, "title": "flat", "about": {}}
    train_tokenizer(plain, images, tmp_path, **options)
    assert len(seen) >= 6
    assert_flat(seen)


@pytest.mark.faults
def test_sampling_hundreds_of_batches() -> None:
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256")
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer)
    seen = []
    for batch in range(BATCHES):
        generator.sample([0, 1, 2, 3], seed=batch, guidance=1.0)
        if batch % 40 == 39:
            seen.append(use())
    assert_flat(seen)
