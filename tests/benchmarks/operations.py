"""What bfloat16 on a CPU runs, plain and fused, at the released sizes: `python -m tests.benchmarks.operations`.

Operators are recorded, not computed (tensors are fake), so that any machine shows what only some have the hardware for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import imagefolder.fused as fused
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.vit import Encoder
from imagefolder.zoo import GENERATORS, TOKENIZERS
from tests.benchmarks.benchmark_models import passes_of_a_sample

TOKENIZER, GENERATOR, BATCH = "MSVR10P2-4096", "VAR-d17-MSVR10P2-4096", 8
PRODUCTS = {"mm", "addmm", "bmm", "_linear_pointwise", "convolution"}
ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
}


@dataclass
class Counts:
    """Of one stage."""

    operators: int = 0
    """without views"""
    around: int = 0
    """bytes read and written by everything but products and attention"""
    rearranged: int = 0
    """bytes of weights that oneDNN copies into its own layout before it multiplies"""
    strided: int = 0
    """multiply-adds of products whose first operand is read transposed, as in a weight's gradient"""
    unaligned: int = 0
    """attention calls whose number of keys is no multiple of 16"""


class Recorder(TorchDispatchMode):
    """Counts the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, counts = func.overloadpacket.__name__, self.counts
        if func.is_view or func.namespace == "prim":
            return out
        counts.operators += 1
        if name in ATTENTION:
            keys = args[1 + name.endswith("backward")]
            counts.unaligned += bool(keys.shape[2] % fused.KEYS)
        elif name not in PRODUCTS:
            counts.around += sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        elif name in ("mm", "addmm"):
            first, second = args[-2:]
            if first.stride(-1) != 1:
                counts.strided += first.numel() * second.shape[1]
            if second.stride(-1) != 1:  # a weight
                counts.rearranged += _bytes(second)
        return out


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def recorded(run: Callable[[], object], *, is_fused: bool) -> Counts:
    """What `run` executes; it may only use fake tensors."""
    # A CPU without fast bfloat16 has no packed weights either; fake ones need none
    with (
        patch.object(fused, "_is_available", lambda: True),
        patch.object(fused, "_pack", lambda weight: weight.detach()),
        nullcontext() if is_fused else fused.plain(),
        Recorder() as recorder,
    ):
        run()
    return recorder.counts


def stages(
    tokenizer: TokenizerConfig, config: GeneratorConfig, batch: int, mode: FakeTensorMode
) -> dict[str, Callable[[], object]]:
    """Encoder, all passes of a sample with guidance, and forward and backward pass of a training step; to be called
    within the mode."""
    with torch.device("meta"):
        encoder = Encoder(tokenizer).bfloat16().eval()
        sampling, training = Transformer(config).bfloat16().eval(), Transformer(config).train()
    with mode:
        for model in (encoder, sampling, training):
            model.to_empty(device="cpu")

    @torch.no_grad()
    def encode() -> None:
        size = tokenizer.image_size
        encoder(torch.empty(batch, 3, size, size, dtype=torch.bfloat16))

    def sample() -> None:
        passes_of_a_sample(sampling, torch.zeros(batch, dtype=torch.long))

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            inputs = torch.empty(batch, training.sequence.length - training.first, config.branches * config.code_dim)
            logits = training(torch.zeros(batch, dtype=torch.long), inputs)
        torch.autograd.grad(logits.mean(), list(training.parameters()), allow_unused=True)

    return {"encode": encode, "sample: transformer": sample, "train generator": train}


def main() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    runs = stages(TOKENIZERS[TOKENIZER], GENERATORS[GENERATOR], BATCH, mode)
    with mode:
        print(f"{TOKENIZER} and {GENERATOR}, batch {BATCH}; plain -> fused")
        print(
            "| stage | operators | GB beside products and attention | GB of weights rearranged "
            "| GFLOP with a transposed operand | attention calls whose keys are no multiple of 16 |"
        )
        print("|---|---|---|---|---|---|")
        for name, run in runs.items():
            columns = zip(*(_cells(recorded(run, is_fused=is_fused)) for is_fused in (False, True)), strict=True)
            print(f"| {name} | " + " | ".join(f"{plain} → {faster}" for plain, faster in columns) + " |", flush=True)


def _cells(counts: Counts) -> tuple[str, ...]:
    sizes = counts.around, counts.rearranged, 2 * counts.strided
    return f"{counts.operators:,}", *(f"{size / 1e9:,.2f}" for size in sizes), str(counts.unaligned)


if __name__ == "__main__":
    main()
