"""A training killed ten times at random points ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import imagefolder.training.loop
from imagefolder.config import Execution, LossConfig, TrainingConfig
from imagefolder.data.images import ArrayImages, Key
from imagefolder.tokenizer.semantic import blank_teacher
from imagefolder.training.tokenizer import train_tokenizer

KILLS, PATIENCE = 10, 120
TOKENIZER = replace(tiny.TOKENIZER, depth=2, drop_path=0.2)
TRAINING = TrainingConfig(
    steps=44, batch_size=8, learning_rate=1e-3, ema=0.9, clip=1.0, checkpoint_every=2, evaluate_every=3
)
LOSS = LossConfig(
    perceptual=0.0, adversarial_start=0.2, discriminator="patch", lecam=0.1, patch_width=8, patch_layers=2
)
EXECUTION = Execution(micro_batch=4, activation_checkpointing=True)


class Killing(ArrayImages):
    """Has the system kill the process some time after so many fetched pieces of batches.

    The timer is the process's own: a parent that waits for the count, and is itself kept waiting, kills too late.
    """

    pieces: int
    delay: float

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        self.pieces -= 1
        if self.pieces == 0:
            signal.setitimer(signal.ITIMER_REAL, self.delay)  # no handler: as final as SIGKILL
        return super().__getitems__(keys)


def evaluate(model: nn.Module) -> float:
    return float(model.decoder.to_pixels.weight[0].sum())


def train(folder: Path, pieces: int = 0, delay: float = 0.0) -> None:
    """Train, in a separate process, which is killed `delay` seconds after it fetched `pieces`, if any."""
    torch.set_num_threads(1)
    imagefolder.training.loop.LOG_EVERY = 1
    torch.manual_seed(6)
    images = Killing(torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
    images.pieces, images.delay = pieces, delay
    teacher = blank_teacher(TOKENIZER)
    options = {"training": TRAINING, "loss": LOSS, "execution": EXECUTION, "evaluate": evaluate, **tiny.RUN}
    train_tokenizer(TOKENIZER, images, folder, teacher=teacher, **options)


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between or within steps, saves and evaluations, before the first save and after the last."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # only the CPU gives bit-identical results
    context = multiprocessing.get_context("forkserver")  # torch is imported once, not in every process
    context.set_forkserver_preload(["imagefolder.training.tokenizer"])
    seed = random.randrange(10**6)
    print("seed", seed)
    draws = random.Random(seed)
    pieces = TRAINING.batch_size // EXECUTION.micro_batch
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    resumed_at = []
    for kill in range(KILLS):
        state = stopped / "state.pt"
        saved = torch.load(state, weights_only=True)["step"] if state.exists() else 0
        resumed_at.append(saved)
        # in the kill-th eleventh of the training, wherever this process resumed
        target = TRAINING.steps * kill // (KILLS + 1) + draws.randrange(TRAINING.steps // (KILLS + 1)) - saved
        args = stopped, pieces * max(target, 1), draws.uniform(0.001, 0.03)  # 0 s is no timer
        process = context.Process(target=train, args=args)
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGALRM
    assert len(set(resumed_at)) > KILLS // 2  # it resumed and did not start over

    for folder in (stopped, whole):
        process = context.Process(target=train, args=(folder,))
        process.start()
        process.join()
        assert process.exitcode == 0
    weights, expected = (load_file(folder / "model.safetensors") for folder in (stopped, whole))
    assert weights.keys() == expected.keys()
    assert not [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert (stopped / "curve.jsonl").read_text() == (whole / "curve.jsonl").read_text()
    about, other = (json.loads((folder / "config.json").read_text()) for folder in (stopped, whole))
    for name in ("selected_step", "selected_value", "losses", "weights_sha256"):
        assert about[name] == other[name]
    assert {"adversarial", "semantic", "discriminator"} <= set(about["losses"])
    assert sorted(path.name for path in stopped.iterdir()) == sorted(path.name for path in whole.iterdir())
