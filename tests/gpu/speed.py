"""Speed and memory of every stage, with records like those of the benchmarks (tests/benchmarks)."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from imagefolder.config import Execution, LossConfig, TrainingConfig
from imagefolder.environment import matmul_peak, peak_memory_mib, synchronize
from imagefolder.evaluation.extractor import Extractor, Widths
from imagefolder.evaluation.inception import NAME
from imagefolder.flops import (
    BACKWARD,
    counted_flops,
    decode_flops,
    encode_flops,
    features_flops,
    pixels_flops,
    sample_flops,
    transformer_flops,
)
from imagefolder.generator.graphs import release
from imagefolder.tokenizer.semantic import blank_teacher
from imagefolder.training.generator import GeneratorTask
from imagefolder.training.loop import DEFAULT_EXECUTION, accelerator_for, prepare
from imagefolder.training.task import Step
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer
from imagefolder.training.trial import memory_in_use
from leaderboard.record import Run
from leaderboard.speed_record import SpeedRecord
from leaderboard.store import write_record
from tests.benchmarks.benchmark_models import DTYPES, scale_of
from tests.benchmarks.benchmark_rounds import repeat_until_steady
from tests.gpu.item import Outcome
from tests.gpu.lab import Lab

PEAK_SECONDS, DRY_PEAK_SECONDS = 0.1, 0.001
SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 1.0, 3, 30


def peak(lab: Lab) -> Outcome:
    """The rates that fractions of the peak refer to, without a goal."""
    seconds = DRY_PEAK_SECONDS if lab.dry else PEAK_SECONDS
    rates = {str(d).removeprefix("torch."): matmul_peak(lab.device, d, seconds) / 1e12 for d in DTYPES.values()}
    return Outcome(", ".join(f"{rate:.3g} TFLOP/s in {name}" for name, rate in rates.items()), numbers=rates)


def sample(
    lab: Lab,
    batch: int,
    most_seconds: float | None = None,
    least_fraction: float | None = None,
    graph: bool = True,
) -> Outcome:
    """Draw images as a user does, with the model's own settings; without `graph`, as for the first time."""
    generator, labels = lab.generator(torch.bfloat16), lab.labels(lab.batch(batch))
    sequence = generator.transformer.sequence

    def run() -> None:
        if not graph:
            release(generator)
        generator.sample(labels)

    record = measure(
        lab, run, "sample" if graph else "sample without CUDA graph", len(labels),
        len(labels) * sample_flops(generator), model=lab.names[0], order="folded", positions=sequence.length,
        tokens=len(labels) * generator.config.branches * generator.tokenizer.config.length,
    )  # fmt: skip
    return judged(lab, record, most_seconds, least_fraction)


def encode(lab: Lab, batch: int) -> Outcome:
    """Images to tokens."""
    tokenizer, images = lab.tokenizer(torch.bfloat16), lab.images(lab.batch(batch))
    tokens = len(images) * tokenizer.config.branches * tokenizer.config.length
    flops = len(images) * encode_flops(tokenizer)
    record = measure(
        lab, lambda: tokenizer.encode(images), "encode", len(images), flops, model=lab.names[1], tokens=tokens
    )
    return judged(lab, record)


def reconstruct(lab: Lab, batch: int) -> Outcome:
    """Images to tokens and back."""
    tokenizer, images = lab.tokenizer(torch.bfloat16), lab.images(lab.batch(batch))
    flops = len(images) * (encode_flops(tokenizer) + decode_flops(tokenizer))
    record = measure(lab, lambda: tokenizer.reconstruct(images), "reconstruct", len(images), flops, model=lab.names[1])
    return judged(lab, record)


def train_generator(lab: Lab, batch: int, least_fraction: float) -> Outcome:
    """A step on tokens at hand: losses, gradients, AdamW."""
    step, flops = generator_step(lab, lab.batch(batch))
    record = measure(lab, step, "train generator", lab.batch(batch), flops, model=lab.names[0])
    return judged(lab, record, least_fraction=least_fraction)


def generator_step(
    lab: Lab, batch: int, execution: Execution = DEFAULT_EXECUTION
) -> tuple[Callable[[], dict[str, Tensor]], float]:
    """A function that takes a step of a new generator in bf16 and returns its losses, and the operations of a step."""
    model = copy.deepcopy(lab.generator(torch.float32))
    config, training = model.config, TrainingConfig(steps=10, clip=2.0, precision="bf16")
    task, first = GeneratorTask(model, training), first_step(training)
    prepare(task.model.train(), training, execution)
    shape = (batch, config.branches, model.tokenizer.config.length)
    tokens, labels = torch.randint(config.codebook_size, shape, device=lab.device), lab.labels(batch)
    flops = (1 + BACKWARD) * batch * transformer_flops(model.transformer)
    return lambda: task.step([(tokens, labels)], first), flops


def train_tokenizer(lab: Lab, batch: int, least_fraction: float | None = None, adversarial: bool = False) -> Outcome:
    """A step with the semantic teacher and, if `adversarial`, PatchGAN, all with random weights; without LPIPS."""
    config, size = lab.tokenizer(torch.float32).config, lab.batch(batch)
    weight = 0.5 if adversarial else 0.0
    loss = LossConfig(perceptual=0.0, adversarial=weight, adversarial_start=0.0, discriminator="patch")
    training = TrainingConfig(steps=10, precision="bf16")
    task = TokenizerTask(new_tokenizer(config), training, loss, teacher=blank_teacher(config))
    for module in (task.model.train(), *task.modules.values(), *task.frozen):
        module.to(lab.device)
    images = torch.randint(256, (size, 3, config.image_size, config.image_size), dtype=torch.uint8, device=lab.device)
    flops = (1 + BACKWARD) * (encode_flops(task.model) + pixels_flops(task.model))
    flops += features_flops(task.teachers[0].vit)
    if adversarial:
        # The model's side: forward and gradient of the input; the discriminator's: forward and backward of both kinds
        flops += (2 + 2 * (1 + BACKWARD)) * counted_flops(lambda: task.discriminator(images[:1].float()))
    first, batches = first_step(training), [(images, torch.zeros(size))]
    stage = "train tokenizer with discriminator" if adversarial else "train tokenizer"
    record = measure(lab, lambda: task.step(batches, first), stage, size, size * flops, model=lab.names[1])
    return judged(lab, record, least_fraction=least_fraction)


def first_step(training: TrainingConfig) -> Step:
    """Of a training by this process alone, in one piece."""
    return Step(0, 1, accelerator_for(training), torch.Generator())


def inception(lab: Lab, batch: int) -> Outcome:
    """Features of images, with random weights: the published ones are a file of their own."""

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """There are no weights to load."""

    with tempfile.NamedTemporaryFile() as empty:
        torch.save({}, empty.name)
        network = Blank(NAME, ["2048", "logits_unbiased"], feature_extractor_weights_path=empty.name).to(lab.device)
    extractor = Extractor(name=NAME, network=network, widths=Widths(2048, 1008), device=lab.device, prefix="")
    images = ((lab.images(lab.batch(batch)) + 1) * 127.5).to(torch.uint8)
    flops = len(images) * counted_flops(lambda: network(images[:1]))
    record = measure(
        lab, lambda: extractor(images), "feature extraction", len(images), flops, dtype="float32", model=NAME
    )
    return judged(lab, record)


def judged(
    lab: Lab, record: SpeedRecord, most_seconds: float | None = None, least_fraction: float | None = None
) -> Outcome:
    """A record in one line, and beside its goal, which is one for released sizes on a GPU."""
    seconds, fraction = record.median_seconds, record.fraction_of_peak or 0.0
    goal, met = "", None
    if most_seconds is not None:
        goal, met = f"under {1000 * most_seconds:.0f} ms", seconds < most_seconds
    if least_fraction is not None:
        goal, met = f"{least_fraction:.0%} of the peak", fraction >= least_fraction
    return Outcome(
        f"{1000 * seconds:,.1f} ms, {record.images_per_second:,.0f} images/s, {fraction:.1%} of "
        f"{record.peak_flops / 1e12:.3g} TFLOP/s, {record.peak_memory_mib / 1024:.1f} GiB"
        + ("" if record.is_steady else ", unsteady"),
        goal=goal,
        met=None if lab.dry else met,
        numbers={"seconds": seconds, "fraction": fraction, "peak_memory_mib": record.peak_memory_mib},
    )


def measure(
    lab: Lab,
    run: Callable[[], object],
    stage: str,
    images: int,
    flops: float,
    dtype: str = "bfloat16",
    **about: Any,
) -> SpeedRecord:
    """Time a stage, and store its record. `about`: further fields of it."""
    command = f"python -m tests.gpu --device {lab.device.type} --only {lab.item}"
    started, peak_seconds = _now(), DRY_PEAK_SECONDS if lab.dry else PEAK_SECONDS

    def timed() -> float:
        clock = time.perf_counter()
        run()
        synchronize(lab.device)
        return time.perf_counter() - clock

    peak = matmul_peak(lab.device, DTYPES[dtype], peak_seconds)
    lab.empty_cache()
    before = memory_in_use() / 2**20
    for _ in range(2):  # kernels are loaded, and memory is allocated; a graph is captured
        timed()
    rounds = 2 if lab.dry else min(max(LEAST_ROUNDS, int(SECONDS / timed())), MOST_ROUNDS)
    seconds = [timed() for _ in range(rounds)]
    attempts = 1 if lab.dry else repeat_until_steady(seconds, timed)
    q1, median, q3 = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    most = peak_memory_mib()
    fields = {"model": "", "tokens": 0, "order": "", "positions": 0, "growth": "", "growth_value": 0.0} | about
    record = SpeedRecord(
        benchmark=command,
        group="stages",
        stage=stage,
        scale=scale_of(fields["model"]),
        device=lab.device.type,
        dtype=dtype,
        batch=images,
        threads=torch.get_num_threads(),
        images=images,
        flops=float(flops),
        peak_flops=max(peak, matmul_peak(lab.device, DTYPES[dtype], peak_seconds)),
        peak_memory_mib=most,
        memory_growth_mib=max(most - before, 0.0),
        median_seconds=median,
        q1_seconds=q1,
        q3_seconds=q3,
        rounds=rounds,
        attempts=attempts,
        run=Run(**lab.machine, started=started, finished=_now(), command=command),
        **fields,
    )
    write_record(lab.output / "speed", record)
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
