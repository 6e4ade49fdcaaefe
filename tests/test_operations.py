"""Fused operations in bfloat16 on a CPU, counted on fake tensors: what they save is what docs/performance.md says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from imagefolder.zoo import GENERATORS, TOKENIZERS
from tests.benchmarks.operations import Counts, recorded, stages


@pytest.fixture(scope="module")
def counts() -> dict[str, tuple[Counts, Counts]]:
    """Of every stage at the released widths, plain and fused."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tokenizer, generator = TOKENIZERS["MSVR10P2-4096"], GENERATORS["VAR-d17-MSVR10P2-4096"]
    runs = stages(replace(tokenizer, depth=2), replace(generator, depth=2), 2, mode)
    with mode:
        return {name: (recorded(run, is_fused=False), recorded(run, is_fused=True)) for name, run in runs.items()}


@pytest.mark.parametrize("stage", ["encode", "sample: transformer"])
def test_inference_packs_weights_once_and_passes_less_often_over_what_it_computes(counts, stage: str) -> None:
    plain, fused = counts[stage]
    assert fused.operators < plain.operators
    assert fused.around < plain.around
    assert fused.rearranged < plain.rearranged / 10  # logits of some branches are of parts of a weight


def test_training_reads_no_large_operand_transposed(counts) -> None:
    plain, fused = counts["train generator"]
    assert fused.strided < plain.strided / 10


def test_attention_has_keys_in_multiples_of_16(counts) -> None:
    for plain, fused in counts.values():
        assert plain.unaligned
        assert not fused.unaligned
