"""What training must survive or reject: losses that are not finite, damaged or foreign states, wrong settings."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from tiny import RUN
from torch import Tensor, nn

from imagefolder.config import Execution, GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.errors import DamagedFile, InputError
from imagefolder.generator.transformer import Transformer
from imagefolder.training.generator import _decay_groups
from imagefolder.training.loop import fit
from imagefolder.training.sanity import TrainingFailed
from imagefolder.training.state import StateFile
from imagefolder.training.task import Batch, Step, TrainingTask, adamw, update
from imagefolder.training.tokenizer import train_tokenizer

TRAINING = TrainingConfig(steps=100, batch_size=2, learning_rate=0.1, checkpoint_every=30)
NOTHING = ArrayImages(torch.zeros(4, 1), torch.zeros(4))


class Line(TrainingTask):
    """One weight trained towards zero; what is added to its loss may depend on the step."""

    def __init__(self, training: TrainingConfig = TRAINING, extra: Callable[[int], float] = lambda step: 0.0) -> None:
        torch.manual_seed(0)
        self.model, self.training = nn.Linear(1, 1, bias=False), training
        self.frozen, self.modules, self.settings = [], {}, {}
        self.optimizers = [adamw(self.model.parameters(), training, rate=0.1, weight_decay=0.0)]
        self.extra, self.rates = extra, []

    def step(self, pieces: list[Batch], step: Step) -> dict[str, Tensor]:
        self.rates.append(self.optimizers[0].param_groups[0]["lr"])
        loss = next(self.model.parameters()).sum().abs()
        step.accelerator.backward(loss)
        update(self.optimizers[0], step.accelerator, clip=0.0)
        return {"fine": loss.detach(), "codebook": loss.detach() + self.extra(step.number)}


def not_finite_from(step: int, value: float = float("nan")) -> Callable[[int], float]:
    return lambda now: value if now >= step else 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_training_and_keeps_the_state(tmp_path: Path, value: float) -> None:
    with pytest.raises(TrainingFailed, match="codebook") as caught:
        fit(Line(extra=not_finite_from(35, value)), NOTHING, tmp_path, seed=0, title="line")
    assert "fine" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 30
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


def test_a_state_with_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    # 25 is after the log at 20 and before the save at 30
    with pytest.raises(TrainingFailed, match="codebook not finite"):
        fit(Line(extra=not_finite_from(25)), NOTHING, tmp_path, seed=0, title="line")
    assert not (tmp_path / "state.pt").exists()


def test_learning_rates_of_a_resumed_training_follow_the_schedule(tmp_path: Path) -> None:
    training = replace(TRAINING, steps=40)
    whole = Line(training)
    fit(whole, NOTHING, tmp_path / "whole", seed=0, title="line")
    with pytest.raises(TrainingFailed):
        fit(Line(training, not_finite_from(36)), NOTHING, tmp_path / "stopped", seed=0, title="line")
    resumed = Line(training)
    fit(resumed, NOTHING, tmp_path / "stopped", seed=0, title="line")
    assert resumed.rates == whole.rates[30:]
    assert max(whole.rates) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(resumed.model.weight, whole.model.weight)


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """The folder of a training that saved its state after step 30 and failed at step 35."""
    with pytest.raises(TrainingFailed):
        fit(Line(extra=not_finite_from(35)), NOTHING, tmp_path, seed=0, title="line")
    return tmp_path


def test_a_curve_line_cut_short_does_not_prevent_resuming(failed: Path) -> None:
    with (failed / "curve.jsonl").open("a") as curve:
        curve.write('{"step": 40, "lo')
    fit(Line(), NOTHING, failed, seed=0, title="line")
    steps = [int(line.split(",")[0].split(":")[1]) for line in (failed / "curve.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 100


@pytest.mark.parametrize("other", ["training", "seed", "images"])
def test_a_state_of_other_settings_is_rejected(failed: Path, other: str) -> None:
    training = replace(TRAINING, learning_rate=1.0) if other == "training" else TRAINING
    images = ArrayImages(torch.zeros(6, 1), torch.zeros(6)) if other == "images" else NOTHING
    with pytest.raises(InputError, match=r"state\.pt belongs to a training with other settings") as caught:
        fit(Line(training), images, failed, seed=1 if other == "seed" else 0, title="line")
    assert str(failed) in str(caught.value)


def test_an_unreadable_state_is_named(failed: Path) -> None:
    (failed / "state.pt").write_bytes((failed / "state.pt").read_bytes()[:200])
    with pytest.raises(InputError, match=r"state\.pt: not readable as a saved state .*; delete") as caught:
        fit(Line(), NOTHING, failed, seed=0, title="line")
    assert "\n" not in str(caught.value)


def test_what_a_killed_process_left_half_written_is_removed(failed: Path) -> None:
    """But not what another process is writing right now."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in ("state.pt", "best.pt"):
        (failed / f".{name}.{platform.node()}-{dead.pid}.tmp").write_bytes(b"half")
    running = failed / f".state.pt.{platform.node()}-{os.getppid()}.tmp"
    running.write_bytes(b"half")
    fit(Line(), NOTHING, failed, seed=0, title="line")
    assert list(failed.glob(".*.tmp")) == [running]


def test_fp16_is_for_generators_on_gpus(
    tmp_path: Path, tokenizer_config: TokenizerConfig, train_digits: ArrayImages
) -> None:
    half = replace(TRAINING, precision="fp16")
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        fit(Line(half), NOTHING, tmp_path, seed=0, title="line")
    loss = LossConfig(perceptual=0.0, adversarial=0.0)
    with pytest.raises(InputError, match="fp16 is for generators"):
        train_tokenizer(tokenizer_config, train_digits, tmp_path, training=half, loss=loss, teacher=None, **RUN)


def test_a_batch_that_does_not_divide_into_pieces_is_rejected(tmp_path: Path) -> None:
    odd = replace(TRAINING, batch_size=7)
    with pytest.raises(InputError, match="batch_size 7 does not divide into 1 processes x 3 pieces"):
        fit(Line(odd), NOTHING, tmp_path, seed=0, title="line", execution=Execution(micro_batch=3))


def test_a_process_that_did_not_join_the_others_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with accelerate's own PartialState() on machines without GPUs; all would write the same files."""
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE=2 means several processes, but RANK, MASTER_ADDR"):
        fit(Line(), NOTHING, tmp_path, seed=0, title="line")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but this process is one of 1"):
        fit(Line(), NOTHING, tmp_path, seed=0, title="line")


def test_weights_that_decay_by_name() -> None:
    config = GeneratorConfig(depth=1, width=48, heads=2, num_classes=10, scales=(1, 2), branches=1)
    model = Transformer(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in _decay_groups(model, 0.05))
    assert decayed == {
        "class_embed.weight",
        "input_embed.weight",
        "layers.0.attn.qkv.weight",
        "layers.0.attn.proj.weight",
        "layers.0.mlp.0.weight",
        "layers.0.mlp.2.weight",
        "layers.0.ada.weight",
        "head_ada.weight",
        "head.weight",
    }
    assert decayed | plain == set(names.values())


def test_a_damaged_state_never_replaces_the_one_before_it(tmp_path: Path) -> None:
    """Until the next state is on disk, the one before is the only good one."""
    file = StateFile(tmp_path / "state.pt", "hash", "state.previous.pt")
    for step in (1, 2):
        file.write({"step": step})
    (tmp_path / "state.pt").write_bytes(b"damaged")
    again = StateFile(tmp_path / "state.pt", "hash", "state.previous.pt")
    assert again.read()["step"] == 1
    again.write({"step": 3})
    assert [torch.load(tmp_path / name)["step"] for name in ("state.previous.pt", "state.pt")] == [1, 3]
    again.write({"step": 4})
    assert [torch.load(tmp_path / name)["step"] for name in ("state.previous.pt", "state.pt")] == [3, 4]


def test_flipped_bits_of_a_state_are_detected(failed: Path) -> None:
    """torch loads them without an error."""
    path = failed / "state.pt"
    data = bytearray(path.read_bytes())
    place = data.index(torch.load(path)["model"]["weight"].numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="checksum"):
        fit(Line(), NOTHING, failed, seed=0, title="line")
