"""Memory of a GPU: what sampling is estimated to need, and what happens if there is not enough."""

from __future__ import annotations

import gc

import torch

from imagefolder.environment import peak_memory_mib
from imagefolder.memory import fitting_batch, sample_bytes
from imagefolder.training.trial import memory_in_use
from tests.gpu.item import Outcome
from tests.gpu.lab import Lab

LEFT = 2**30  # bytes that the sample that does not fit may take
LEFT_BEHIND = 2**20  # bytes that it may leave allocated


def exhausted(lab: Lab, batch: int) -> Outcome:
    """Compare the memory of a sample with its estimate; then let one fail, and draw the first again."""
    generator, labels = lab.generator(torch.bfloat16), lab.labels(lab.batch(batch))
    tokens = generator.sample(labels).tokens
    lab.empty_cache()
    before = memory_in_use()
    generator.sample(labels)
    needed, estimated = (peak_memory_mib() * 2**20 - before) / len(labels), sample_bytes(generator)
    fitting = fitting_batch(generator)
    lab.require_cuda()
    raised, left_behind = sample_that_does_not_fit(lab)
    again = bool((generator.sample(labels).tokens == tokens).all())
    return Outcome(
        f"an image needs {needed / 2**20:.0f} MiB, estimated {estimated / 2**20:.0f}; {fitting} are said to fit; one "
        f"sample too many raised {raised}, left {left_behind / 2**20:.1f} MiB, and the next one was "
        f"{'as before' if again else 'another'}",
        goal="at most as estimated, OutOfMemoryError, nothing left, the same sample",
        met=needed <= estimated and raised == "OutOfMemoryError" and left_behind <= LEFT_BEHIND and again,
        numbers={"needed": needed, "estimated": float(estimated), "left": float(left_behind)},
    )


def sample_that_does_not_fit(lab: Lab) -> tuple[str, int]:
    """The name of what it raised, and the bytes that it left allocated."""
    generator, raised = lab.generator(torch.bfloat16), "nothing"
    labels = lab.labels(256)
    gc.collect()
    torch.cuda.empty_cache()
    allocated = torch.cuda.memory_allocated()
    limit = (torch.cuda.memory_reserved() + LEFT) / torch.cuda.get_device_properties(lab.device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        generator.sample(labels)
    except RuntimeError as error:
        raised = type(error).__name__
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    return raised, torch.cuda.memory_allocated() - allocated
