"""Two processes over Gloo, each with half of the batch, in pieces or not, train like one process on the whole batch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import Tensor
from two_processes import run_two_processes

import imagefolder.training.loop
from imagefolder.config import Execution, GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.distributed import gather_objects, join_processes, rank
from imagefolder.interruption import Stopped, clear_stop, request_stop
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import blank_teacher
from imagefolder.training.generator import train_generator
from imagefolder.training.tokenizer import train_tokenizer

PROCESSES, TIMEOUT, STOP = 2, 480, 3

# No stochastic depth: its noise differs between processes
TOKENIZER = replace(tiny.TOKENIZER, depth=2, drop_path=0.0, quantizer_dropout=0.4, dropout_start=1)
GENERATOR = GeneratorConfig(
    name="tiny",
    depth=2,
    width=48,
    heads=2,
    num_classes=10,
    drop_path=0.0,
    class_dropout=0.4,
    scales=TOKENIZER.scales,
    codebook_size=64,
    code_dim=8,
)
TRAINING = TrainingConfig(
    steps=6, batch_size=8, learning_rate=1e-3, ema=0.9, clip=1.0, checkpoint_every=100, evaluate_every=2
)
LOSS = LossConfig(
    perceptual=0.0,
    semantic=0.5,
    adversarial=0.5,
    adversarial_start=0.3,
    discriminator="patch",
    lecam=0.5,
    patch_width=8,
    patch_layers=2,
    discriminator_rate=1e-3,
)


pytestmark = pytest.mark.slow  # two processes that import torch


@dataclass(frozen=True)
class Case:
    """One training; `micro_batch`: of two processes, `alone`: of a single one."""

    name: str
    model: TokenizerConfig | GeneratorConfig
    loss: LossConfig = LOSS
    micro_batch: int = 0
    alone: int = 0


CASES = {
    case.name: case
    for case in (
        Case("generator", GENERATOR),
        Case("generator in pieces", GENERATOR, micro_batch=2),
        Case("tokenizer", TOKENIZER),
        # PatchGAN normalises a piece across both processes
        Case("tokenizer in pieces", TOKENIZER, micro_batch=2, alone=4),
        Case(
            "binary in pieces",
            replace(TOKENIZER, quantizer="bsq", code_dim=6),
            replace(LOSS, adversarial=0.0, semantic_normalise=True, semantic_scale=(1.0, 10.0)),
            micro_batch=1,
        ),
        Case(
            "perturbed in pieces",
            replace(TOKENIZER, scales=(3,), branches=1, perturbed_images=0.4, perturbation_depth=9),
            replace(LOSS, adversarial=0.0),
            micro_batch=1,
        ),
        Case("all branches", replace(TOKENIZER, semantic="all"), replace(LOSS, adversarial_kind="non-saturating")),
    )
}


def train(case: Case, folder: Path, processes: int, steps_before_stop: int | None = None) -> None:
    """Train a case into `folder`; the last process is asked to stop in the step after `steps_before_stop`."""
    torch.manual_seed(11)
    execution = Execution(micro_batch=case.alone if processes == 1 else case.micro_batch)
    options = {"training": TRAINING, "execution": execution, "evaluate": evaluate, **tiny.RUN, "title": case.name}
    if isinstance(case.model, GeneratorConfig):
        draws = torch.Generator().manual_seed(0)
        tokens = torch.randint(64, (50, 2, 14), generator=draws)
        data = ArrayImages(tokens, torch.randint(10, (50,), generator=draws))
        if steps_before_stop is not None:
            data = StoppingTokens(data.images, data.labels, steps_before_stop, processes)
        train_generator(GENERATOR, data, folder, tokenizer=Tokenizer(TOKENIZER), **options)
    else:
        images = ArrayImages(torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8), torch.zeros(50))
        train_tokenizer(case.model, images, folder, loss=case.loss, teacher=blank_teacher(TOKENIZER), **options)


class StoppingTokens(ArrayImages):
    """Asks the last process to stop while it fetches the batch of a step."""

    def __init__(self, tokens: Tensor, labels: Tensor, steps: int, processes: int) -> None:
        super().__init__(tokens, labels)
        self.steps, self.fetched, self.mine = steps, 0, rank() == processes - 1

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        if self.mine and self.fetched == self.steps:
            request_stop()
        self.fetched += 1
        return super().__getitems__(keys)


def evaluate(model: torch.nn.Module) -> float:
    """Best at the second of three evaluations on rank 0, and at the third on any other rank."""
    assert not model.training
    evaluate.calls = getattr(evaluate, "calls", 0) + 1
    return (3.0, 1.0, 2.0)[(evaluate.calls - 1 + 2 * rank()) % 3]


def results(folder: Path) -> dict[str, object]:
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return {"curve": curve, "config": json.loads((folder / "config.json").read_text())}


def _process(number: int, folder: Path) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["IMAGEFOLDER_TEST_PORT"]}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    imagefolder.training.loop.LOG_EVERY = 1
    join_processes()
    for case in CASES.values():
        evaluate.calls = 0
        train(case, folder / case.name, PROCESSES)
    message = ""
    try:
        train(CASES["generator"], folder / "stopped", PROCESSES, steps_before_stop=STOP)
    except Stopped as stopped:
        message = str(stopped)
    clear_stop()
    (folder / f"message{number}").write_text(json.dumps(gather_objects(message)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all cases, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store  # the port is free again
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEFOLDER_TEST_PORT", str(port))
        run_two_processes(_process, folder, TIMEOUT)
    return folder


@pytest.fixture(autouse=True)
def _every_step_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder.training.loop, "LOG_EVERY", 1)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_like_one_on_the_whole_batch(of_two: Path, tmp_path: Path, name: str) -> None:
    evaluate.calls = 0
    train(CASES[name], tmp_path, 1)
    ours, expected = results(of_two / name), results(tmp_path)
    assert [point["step"] for point in ours["curve"]] == list(range(1, 7))
    for point, one in zip(ours["curve"], expected["curve"], strict=True):
        assert point == pytest.approx(one, rel=2e-3, abs=1e-6)
    if "adversarial" in expected["curve"][-1]:
        assert {"semantic", "discriminator", "adaptive_weight"} <= set(expected["curve"][-1])
    # rank 0 decides which weights are kept
    assert (ours["config"]["selected_step"], ours["config"]["selected_value"]) == (4, 1.0)
    assert not list((of_two / name).glob("*.pt"))


def test_a_stop_of_one_process_stops_both_and_one_process_resumes(of_two: Path, tmp_path: Path) -> None:
    messages = json.loads((of_two / "message0").read_text())
    assert messages == json.loads((of_two / "message1").read_text())
    # batches are fetched at most one step ahead, and processes agree a step later
    assert messages[0] == messages[1] == f"generator: stopped at step {STOP + 2} of 6; the same command continues"
    state = torch.load(of_two / "stopped" / "state.pt", weights_only=True)
    assert (state["step"], state["world"]) == (STOP + 2, 2)
    evaluate.calls = 2
    train(CASES["generator"], of_two / "stopped", 1)
    train(CASES["generator"], tmp_path, 1)
    for point, one in zip(results(of_two / "stopped")["curve"], results(tmp_path)["curve"], strict=True):
        point.pop("evaluation", None), one.pop("evaluation", None)
        assert point == pytest.approx(one, rel=2e-3, abs=1e-6)
