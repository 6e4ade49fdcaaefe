"""Adversarial losses by name, and the contrastive loss over several processes."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_two_processes

from imagefolder.errors import InputError
from imagefolder.tokenizer.discriminator import BatchNorm
from imagefolder.tokenizer.losses import (
    LeCam,
    adversarial_loss,
    discriminator_loss,
    gather_with_gradient,
    semantic_loss,
)

PROCESSES, ROWS, TIMEOUT = 2, 3, 120
REAL, FAKE = [2.0, 0.5, -1.0], [-3.0, 0.0, 1.5, 0.25]


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_discriminator_losses_by_hand(kind):
    term = (lambda x: max(0.0, 1 + x)) if kind == "hinge" else softplus
    expected = (sum(term(-x) for x in REAL) / 3 + sum(term(x) for x in FAKE) / 4) / 2
    assert float(discriminator_loss(kind, torch.tensor(REAL), torch.tensor(FAKE))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_generator_losses_by_hand(kind):
    expected = sum(softplus(-x) if kind == "non-saturating" else -x for x in FAKE) / 4
    assert float(adversarial_loss(kind, torch.tensor(FAKE))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_the_two_sides_pull_against_each_other(kind):
    real, fake = (torch.zeros(2, 5, requires_grad=True) for _ in range(2))
    discriminator_loss(kind, real, fake).backward()
    assert (real.grad < 0).all()  # a step down raises the logits of real images
    assert (fake.grad > 0).all()
    fake.grad = None
    adversarial_loss(kind, fake).backward()
    assert (fake.grad < 0).all()


def test_large_logits_stay_finite():
    far = torch.tensor([1e4, -1e4])
    assert float(discriminator_loss("vanilla", far, far)) == pytest.approx(5e3)
    assert float(adversarial_loss("non-saturating", far)) == pytest.approx(5e3)


def test_unknown_kind_is_refused():
    logits = torch.zeros(2)
    for call in (lambda: discriminator_loss("wgan", logits, logits), lambda: adversarial_loss("wgan", logits)):
        with pytest.raises(InputError, match=r"'wgan' is not one of hinge, vanilla, non-saturating"):
            call()


def test_normalised_semantic_loss_compares_directions():
    """Cosines [[0.6, 0], [0.8, 1]] at scale 2."""
    projected, pooled = torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([[6.0, 8.0], [0.0, 5.0]])
    cosines = [[0.6, 0.0], [0.8, 1.0]]
    e = [[math.exp(2 * value) for value in row] for row in cosines]
    rows = -(math.log(e[0][0] / sum(e[0])) + math.log(e[1][1] / sum(e[1]))) / 2
    columns = -(math.log(e[0][0] / (e[0][0] + e[1][0])) + math.log(e[1][1] / (e[0][1] + e[1][1]))) / 2
    assert float(semantic_loss(projected, pooled, logit_scale=2.0, normalise=True)) == pytest.approx(
        (rows + columns) / 2, rel=1e-6
    )
    assert float(semantic_loss(projected, pooled, logit_scale=2.0)) != pytest.approx((rows + columns) / 2, rel=0.1)


def test_gathering_without_processes_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(x) is x


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(4, 5) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(a), self.right(b)


def _case() -> tuple[Projections, Tensor, Tensor]:
    """A model and the whole batch, equal in every process."""
    torch.manual_seed(7)
    return Projections(), torch.randn(PROCESSES * ROWS, 4), torch.randn(PROCESSES * ROWS, 4)


def _losses_and_gradients(model: nn.Module, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    results = {}
    # 3 leaves the processes different numbers of rows, 5 leaves the first one none, and 6 leaves none at all
    for normalise, skip in ((False, 0), (True, 0), (False, 3), (False, 5), (False, 6)):
        model.zero_grad(set_to_none=True)
        loss = semantic_loss(*model(a, b), logit_scale=3.0, normalise=normalise, skip=skip)
        loss.backward()
        results[f"loss {normalise} {skip}"] = loss.detach()
        for name, parameter in model.named_parameters():
            results[f"{name.removeprefix('module.')} {normalise} {skip}"] = parameter.grad.clone()
    return results


def _normalised(part: slice) -> dict[str, Tensor]:
    """Two batches through a batch norm in training mode; this process has a part of each."""
    torch.manual_seed(8)
    norm, x, weight = BatchNorm(4), torch.randn(2, PROCESSES * ROWS, 4, 3, 3) * 3 + 10, torch.randn(4, 3, 3)
    nn.init.normal_(norm.weight)
    mine = x[:, part].requires_grad_()
    out = [norm(batch) for batch in mine]
    (torch.stack(out).square() * weight).sum().backward()
    return {"normalised": torch.stack(out).detach(), "input gradient": mine.grad, **norm.state_dict()}


def _regularised(part: slice) -> dict[str, Tensor]:
    """The running means of LeCam after two batches of logits; this process has a part of each."""
    torch.manual_seed(9)
    lecam, logits = LeCam(decay=0.5), torch.randn(2, 2, PROCESSES * ROWS, 5)
    for real, fake in logits[:, :, part]:
        lecam.update(real.mean(), fake.mean())
    return {"lecam real": lecam.real, "lecam fake": lecam.fake}


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=TIMEOUT // 2),
    )
    model, a, b = _case()
    own = slice(rank, None, PROCESSES)
    results = _losses_and_gradients(DistributedDataParallel(model), a[own], b[own])

    x = torch.arange(6.0).view(3, 2).T + 10 * rank  # not contiguous
    x.requires_grad_()
    gathered = gather_with_gradient(x)
    # each process weights the rows differently
    (gathered * torch.arange(12.0).view(4, 3) * (rank + 1)).sum().backward()
    results |= {"gathered": gathered.detach(), "gradient": x.grad} | _normalised(own)
    results |= _regularised(own)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Results of two Gloo processes that each hold half of the batch."""
    folder = tmp_path_factory.mktemp("gloo")
    run_two_processes(_process, folder, TIMEOUT)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.slow
def test_two_processes_train_as_one_on_the_whole_batch(of_processes):
    expected = _losses_and_gradients(*_case())
    for results in of_processes:
        for name, value in expected.items():
            torch.testing.assert_close(results[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_gathering_sums_the_gradients_of_all_processes(of_processes):
    rows = torch.arange(6.0).view(3, 2).T
    for rank, results in enumerate(of_processes):
        assert torch.equal(results["gathered"], torch.stack([rows, rows + 10], 1).flatten(0, 1))
        assert torch.equal(results["gradient"], 3 * torch.arange(12.0).view(4, 3)[rank::2])


def test_batch_norm_takes_the_statistics_of_all_processes(of_processes):
    expected = _normalised(slice(None))
    assert expected["num_batches_tracked"] == 2
    for rank, results in enumerate(of_processes):
        for name, value in expected.items():
            if name in ("normalised", "input gradient"):
                value = value[:, rank::PROCESSES]
            torch.testing.assert_close(results[name], value, rtol=1e-4, atol=1e-4)


def test_lecam_averages_the_logits_of_all_processes(of_processes):
    for results in of_processes:
        for name, value in _regularised(slice(None)).items():
            torch.testing.assert_close(results[name], value)
