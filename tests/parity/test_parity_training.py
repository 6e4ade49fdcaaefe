"""In training mode, too, our models match the reference implementation: losses and all gradients."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from recorded import BACKBONE, HERE, authors_state, deviation, teacher_of, write_tokenizer
from torch import Tensor

import imagefolder
from imagefolder.checkpoints.authors import translate
from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.tokenizer.codes import BinaryCodes, entropy_of_log_odds
from imagefolder.tokenizer.model import TrainingOutput
from imagefolder.training.schedule import discriminator_rate, learning_rate_share
from imagefolder.training.task import Step
from imagefolder.training.tokenizer import TokenizerTask
from imagefolder.zoo import OBJECTIVES, RELEASED_TRAINING

NAMES = {"rel": "MSVR10P2-4096", "bsq": "MSBR10P2-4096", "vp2": "VP2-16384", "vq": "VQ-8192"}
EPOCHS = 200
CPU = torch.device("cpu")
SEMANTIC_WEIGHT = 0.1  # of the recorded semantic loss


class Pass:
    """One step of the real training task on a recorded batch; its gradients are kept instead of applied."""

    def __init__(self, kind: str, folder: Path, pieces: int = 1, device: torch.device = CPU) -> None:
        self.case: dict[str, Any] = json.loads((HERE / "training" / f"train_{kind}_0.json").read_text())
        self.recorded = dict(np.load(HERE / "training" / f"train_{kind}_0.npz"))
        state = authors_state(self.case["state_dict"])
        # The recorded passes have more dropout than the released configuration, no stochastic depth, and the
        # later release's sum of the commitment over scales
        tokenizer = imagefolder.load_tokenizer(
            NAMES[kind],
            write_tokenizer(folder / "best_ckpt.pt", state),
            backbone=BACKBONE,
            drop_path=0.0,
            quantizer_dropout=self.case["config"]["codebook_drop"],
            commitment_over_scales="sum",
        )
        loss = replace(LossConfig(**OBJECTIVES[NAMES[kind]].loss), perceptual=0.0, adversarial=0.0)
        training = TrainingConfig(steps=EPOCHS, batch_size=8)
        task = TokenizerTask(tokenizer.to(device), training, loss, teacher=teacher_of(state).to(device))
        kept = torch.tensor(self.case["draws"])
        kept[tokenizer.quantizer.touched(8) :] = len(tokenizer.config.scales)
        if len(tokenizer.config.scales) > 1:
            tokenizer.quantizer.draw_kept = lambda batch, generator: kept
        self.quantizer, self.map_size = tokenizer.quantizer, tokenizer.config.latent_side**2
        self.gradients: dict[str, Tensor] = {}
        task.optimizers[0].step = lambda: self.gradients.update(
            (name, parameter.grad.cpu()) for name, parameter in tokenizer.named_parameters()
        )
        outputs: list[TrainingOutput] = []
        tokenizer.train().register_forward_hook(lambda module, inputs, output: outputs.append(output))
        base = torch.from_numpy(self.recorded["base"])
        batch = torch.cat([base, base.flip(3), base.flip(2), base.transpose(2, 3)])
        AcceleratorState._reset_state(reset_partial_state=True)
        step = Step(self.case["epoch"], pieces, Accelerator(cpu=device == CPU), torch.Generator())
        parts = [(part, torch.zeros(len(part))) for part in batch.to(device).chunk(pieces)]
        self.losses = task.step(parts, step)
        self.images = torch.cat([output.images.cpu() for output in outputs[-pieces:]])

    def assert_recorded(self, gradients: float = 1e-4) -> None:
        """Losses to 4 digits, and every gradient's norm and projection to `gradients` times its norm."""
        values = self.case["values"]
        names = {"rec": "reconstruction", "vq": "codebook", "commit": "commitment", "entropy": "entropy"}
        found = {name: float(self.losses.get(ours, torch.zeros(()))) for name, ours in names.items()}
        found["sem"] = SEMANTIC_WEIGHT * float(self.losses["semantic"])
        found["entropy"] *= LossConfig().entropy
        found["total"] = sum(found.values())
        assert found == pytest.approx(values, rel=1e-4, abs=1e-7)
        branches = [branch.codebook.usage(8 * self.map_size) for branch in self.quantizer.branches]
        assert torch.stack(branches).mean(0).tolist() == pytest.approx([u / 100 for u in self.case["usages"]], abs=1e-3)
        assert deviation(self.images[:, :, ::8, ::8], self.recorded["recon8"]) < 2e-3  # recorded in float16
        translated = {}
        for name, (norm, projection) in self.case["grads"].items():
            shape = self.case["state_dict"][name]
            (ours,) = translate({name: torch.zeros(shape)}, TokenizerConfig)
            probe = np.random.Generator(np.random.PCG64(zlib.crc32(f"probe.{name}".encode()))).standard_normal(shape)
            gradient = self.gradients[ours].double()
            assert float(gradient.norm()) == pytest.approx(norm, rel=gradients), name
            dot = float((gradient * torch.from_numpy(probe).view_as(gradient)).sum())
            assert dot == pytest.approx(projection, abs=gradients * norm), name
            translated[ours] = name
        assert translated.keys() == self.gradients.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pieces"), [("rel", 1), ("rel", 4), ("vq", 1), ("vp2", 1)])
def test_losses_and_gradients_of_learned_codes(kind: str, pieces: int, tmp_path: Path) -> None:
    Pass(kind, tmp_path, pieces).assert_recorded()


def selected_by_an_integer_mask(codes: BinaryCodes, rests: Tensor, use: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The release's bug: its mask of kept samples is used as an index, so that only samples 0 and 1 enter."""
    x = codes.bit_log_odds(rests)
    x = torch.stack([scale[used.long()] for scale, used in zip(x, use, strict=True)])
    entropy, bits = entropy_of_log_odds(x).sum(3).mean((1, 3, 4)), torch.sigmoid(x).mean((1, 4, 5))
    return entropy.T, bits.transpose(0, 1)


@pytest.mark.slow
def test_losses_and_gradients_of_binary_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded pass contains the bug; with it our entropy is the recorded one, without it it differs."""
    ours = Pass("bsq", tmp_path)
    monkeypatch.setattr(BinaryCodes, "entropies", selected_by_an_integer_mask)
    Pass("bsq", tmp_path).assert_recorded()
    with_bug = ours.case["values"]["entropy"] / LossConfig().entropy
    assert float(ours.losses["entropy"]) != pytest.approx(with_bug, rel=0.1)
    for name in ("rec", "vq", "commit"):
        loss = ours.losses[{"rec": "reconstruction", "vq": "codebook", "commit": "commitment"}[name]]
        assert float(loss) == pytest.approx(ours.case["values"][name], rel=1e-4)


def test_learning_rates_of_every_epoch() -> None:
    recorded = json.loads((HERE / "lr_per_epoch.json").read_text())
    steps = RELEASED_TRAINING.steps // EPOCHS
    loss = LossConfig(**OBJECTIVES["MSVR10P2-4096"].loss)

    for epoch, (tokenizer, discriminator) in enumerate(
        zip(recorded["tokenizer"], recorded["discriminator"], strict=True)
    ):
        for step in (epoch * steps, (epoch + 1) * steps - 1):
            rate = RELEASED_TRAINING.learning_rate * learning_rate_share(step, RELEASED_TRAINING)
            assert rate == pytest.approx(tokenizer, rel=1e-9)
            assert discriminator_rate(step, RELEASED_TRAINING, loss) == pytest.approx(discriminator, rel=1e-9)
