"""The last stage of a row: its sampling and training steps, timed with nothing of the run beside them.

Everything else of a row is done while other rows train on the same machine, which changes how long it takes. Here, a
few rounds of each piece run with the models, settings and data of the row and with all threads that torch uses by
itself. The trained weights are only read: steps train new models, which are thrown away.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from imagefolder.data.images import samples_to_uint8
from imagefolder.distributed import gather_objects, is_main, of_main, world_size
from imagefolder.environment import DEFAULT_THREADS, peak_memory_mib, synchronize
from imagefolder.errors import InputError, reason
from imagefolder.evaluation.extractor import default_device
from imagefolder.evaluation.protocols import labels_of
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import arguments_of
from imagefolder.progress import console
from imagefolder.training.generator import GeneratorTask
from imagefolder.training.token_cache import encoded_share
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer
from imagefolder.training.trial import Trial, memory_in_use
from leaderboard.record import Timed
from reproductions.alone import Others, gpu_share, is_alone, is_idle
from reproductions.models import load_models, load_tokenizer
from reproductions.recording import finished_record, is_timed, record_timing
from reproductions.row import Row
from reproductions.stages import discriminator_features, teacher_of, token_cache

WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 2, 5, 30
SECONDS = 0.7  # for the rounds of a piece, unless the fewest rounds take longer
LONGEST = 60.0  # seconds after which fewer rounds have to do


def run_timing(row: Row) -> None:
    """Time a finished row unless that is done, and add that to its record.

    A row that was timed while other work ran is timed again only once the machine is idle. What cannot be timed is only
    reported: the row stays finished. All processes that work together call this at once.

    Raises:
        InputError, OSError: only if several processes work together; the others would wait for this one.
    """
    try:
        with row.building(row.record.with_suffix(""), "timing"), _default_threads(), torch.random.fork_rng():
            if _is_due(row):
                _time(row)
    except (InputError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if world_size() > 1:
            raise
        console.print(f"timing of {row.name}: not possible: {reason(error)}")


def _is_due(row: Row) -> bool:
    """Whether to time a finished row now."""
    record = finished_record(row)
    cost = None if record is None else record.cost
    done, again = of_main((is_timed(row, record), cost is not None and cost.threads is not None))
    if done:
        return False
    if again and is_idle() is False:
        if is_main():
            console.print(f"timing of {row.name}: not repeated, as other work still runs on this machine")
        return False
    return True


def _time(row: Row) -> None:
    gpu, others, timed = gpu_share(), Others(), dict[str, Timed]()
    if row.recipe.generator is not None:
        timed["sampling"] = _sampling(row, others)
    if row.given is None:
        timed["tokenizer_step"] = _tokenizer_step(row, others)
        if row.generator is not None and of_main(_has_tokens(row)):
            timed["generator_step"] = _generator_step(row, others)
    cores = others.cores
    alone = is_alone(cores, gpu)
    if is_main() and timed:
        fields = {"alone": alone, "other_cores": cores, "threads": torch.get_num_threads(), **timed}
        if "sampling" in timed:
            fields |= {"samples_per_second": timed["sampling"].median, "sample_batch": sample_batch(row)}
        record_timing(row, **fields)
        console.print(f"timing of {row.name}: {_in_words(timed)}{_beside(alone, cores)}")


def _sampling(row: Row, others: Others) -> Timed:
    """Samples per second, as `evaluate_generation` draws them: the whole way to 8-bit images, in its batches."""
    splits, settings, base = row.splits, arguments_of(row.sampling), _memory()
    with ExitStack() as locks:
        for model in reversed(row.models):  # the generator's lock comes first
            locks.enter_context(row.building(model.folder))
        generator = load_models(row).generator
    assert generator is not None, "asked for by the caller"
    size = sample_batch(row)
    labels = labels_of(torch.arange(size) % len(splits.classes), splits, generator)

    def run() -> None:
        out = generator.sample(labels, **settings, seed=row.seed, indices=list(range(size)))
        samples_to_uint8(out.images).cpu()

    seconds = _rounds(run, others)
    return _quartiles(size * world_size() / seconds, base)


def sample_batch(row: Row) -> int:
    """The row's, unless it is larger than all samples together."""
    return min(row.sampling.batch_size, row.scale.samples)


def _tokenizer_step(row: Row, others: Others) -> Timed:
    """Seconds of a step of the tokenizer's training near its end, when all of its losses are in force."""
    splits, base = row.splits, _memory()
    task = TokenizerTask(
        new_tokenizer(row.recipe.tokenizer),
        row.training,
        row.loss,
        teacher=teacher_of(row),
        features=discriminator_features(row),
    )
    images = splits.train.augmented("tokenizer", row.seed)
    step = Trial(task, row.execution).steps(images, row.training.steps - 1, WARM_UP + MOST_ROUNDS)
    return _quartiles(_rounds(step, others), base)


def _has_tokens(row: Row) -> bool:
    """Whether what the generator is trained on is there; it would take long to encode only for the timing."""
    return not row.scale.views or encoded_share(row.tokens, row.dataset.n_train, row.scale.views) == 1


def _generator_step(row: Row, others: Others) -> Timed:
    """Seconds of a step of the generator's training, on the cached tokens if it was trained on them."""
    splits, training, base = row.splits, row.scale.generator_training, _memory()
    assert row.recipe.generator is not None, "asked for by the caller"
    with row.building(row.tokenizer.folder):
        tokenizer, sha256 = load_tokenizer(row)
        images = splits.train.augmented("generator", row.seed)
        source = token_cache(row, tokenizer, sha256) if row.scale.views else images
    task = GeneratorTask(Generator(row.recipe.generator, tokenizer), training)
    step = Trial(task, row.execution).steps(source, training.steps - 1, WARM_UP + MOST_ROUNDS)
    return _quartiles(_rounds(step, others), base)


def _rounds(run: Callable[[], None], others: Others) -> np.ndarray:
    """Seconds of every round (rounds,) after the warm-up, in the slowest process."""
    device, seconds = default_device(), list[float]()

    def timed() -> float:
        clock = time.perf_counter()
        run()
        synchronize(device)
        return max(gather_objects(time.perf_counter() - clock))

    for _ in range(WARM_UP):
        if timed() > LONGEST:
            break
    with others:
        while not seconds or (len(seconds) < MOST_ROUNDS and sum(seconds) < _allowed(len(seconds))):
            seconds.append(timed())
    return np.array(seconds)


def _allowed(rounds: int) -> float:
    return LONGEST if rounds < LEAST_ROUNDS else SECONDS


def _quartiles(values: np.ndarray, base: float) -> Timed:
    """`values`, one per round; `base`: MiB in use before any model was loaded."""
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    growth = max(gather_objects(peak_memory_mib() - base))
    return Timed(q1=q1, median=median, q3=q3, rounds=len(values), memory_mib=max(growth, 0.0))


def _memory() -> float:
    """MiB in use; restarts the measurement of the peak."""
    gc.collect()  # models of the piece before
    return memory_in_use() / 2**20


@contextmanager
def _default_threads() -> Iterator[None]:
    """As many threads as torch uses by itself, whatever the scale gives to a stage."""
    before = torch.get_num_threads()
    with threadpool_limits(DEFAULT_THREADS):
        torch.set_num_threads(DEFAULT_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _in_words(timed: dict[str, Timed]) -> str:
    units = {
        "sampling": "samples/s",
        "tokenizer_step": "s per step of the tokenizer",
        "generator_step": "s per step of the generator",
    }
    values = {name: piece.median for name, piece in timed.items()}
    texts = {name: f"{value:.3g}" if value < 100 else f"{value:,.0f}" for name, value in values.items()}
    return ", ".join(f"{text} {units[name]}" for name, text in texts.items())


def _beside(alone: bool | None, cores: float | None) -> str:
    if alone is None:
        return "; it is not known whether anything else ran"
    return "" if alone else f"; other work ran beside it ({cores or 0.0:.1f} cores), so it is marked in the report"
