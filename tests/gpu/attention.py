"""Which attention kernels run: fused ones, or products and a softmax that keep every score in memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from imagefolder.environment import synchronize
from tests.gpu.item import Outcome
from tests.gpu.lab import Lab
from tests.gpu.speed import generator_step

OPERATOR = re.compile(r"aten::_scaled_dot_product_(?P<kind>\w+?)(_attention)?(_for_cpu)?")
KERNEL = re.compile(r"flash|fmha|sdpa|attention", re.IGNORECASE)
UNFUSED = "attention_math"


def fused(lab: Lab, batch: int) -> Outcome:
    """Profile sampling, encoding and a training step in bfloat16; the log lists all kernels of attention."""
    size, generator = lab.batch(batch), lab.generator(torch.bfloat16)
    images, labels = lab.images(size), lab.labels(size)
    step, _ = generator_step(lab, size)
    stages: dict[str, Callable[[], object]] = {
        "sample": lambda: generator.sample(labels),
        "encode": lambda: generator.tokenizer.encode(images),
        "train": step,
    }
    chosen, kernels = dict[str, Counter[str]](), dict[str, Counter[str]]()
    for name, run in stages.items():
        run()  # what is profiled does not include loading kernels
        chosen[name], kernels[name] = profiled(lab, run)
        print(name, dict(chosen[name]), dict(kernels[name]), flush=True)
    parts = [f"{name}: {', '.join(f'{n} x {kind}' for kind, n in found.items())}" for name, found in chosen.items()]
    all_fused = all(found and UNFUSED not in found for found in chosen.values())
    return Outcome(
        "; ".join(parts),
        goal="fused everywhere",
        met=all_fused and (lab.dry or all(kernels.values())),
        numbers={f"{name} {kind}": float(n) for name, found in chosen.items() for kind, n in found.items()},
    )


def profiled(lab: Lab, run: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """How often torch chose which kind of attention (forward passes), and the GPU's kernels of attention by name."""
    activities = [ProfilerActivity.CPU] if lab.dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as seen:
        run()
        synchronize(lab.device)
    chosen, kernels = Counter[str](), Counter[str]()
    for event in seen.key_averages():
        found = OPERATOR.fullmatch(event.key)
        if found is not None and not event.key.endswith("_backward"):
            chosen[found["kind"]] += event.count
        if event.device_type == DeviceType.CUDA and KERNEL.search(event.key) and not event.key.startswith("aten::"):
            kernels[event.key] += event.count
    return chosen, kernels
