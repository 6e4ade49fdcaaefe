"""Samples of a CUDA graph beside those of the same kernels launched one by one."""

from __future__ import annotations

import warnings

import torch

from imagefolder.generator.graphs import calls_of, release
from tests.gpu.item import Outcome
from tests.gpu.lab import Lab

CALLS = 3  # launched one by one, captured and replayed, replayed


def replayed(lab: Lab, batch: int) -> Outcome:
    """Equal tokens and images, for labels and seeds that differ from those of the capture."""
    lab.require_cuda()
    generator, labels = lab.generator(torch.bfloat16), lab.labels(lab.batch(batch))
    given = [{"labels": labels.roll(call), "seed": call} for call in range(CALLS)]
    wanted = []
    for arguments in given:
        release(generator)  # else the second would be captured
        wanted.append(generator.sample(**arguments))
    release(generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the graph could not be captured
        found = [generator.sample(**arguments) for arguments in given]
    equal = [
        torch.equal(a.tokens, b.tokens) and torch.equal(a.images, b.images) for a, b in zip(found, wanted, strict=True)
    ]
    return Outcome(
        f"{sum(equal)} of {CALLS} batches are equal bit for bit",
        goal="all",
        met=all(equal) and calls_of[generator].graph is not None,
        numbers={"equal": float(sum(equal))},
    )
