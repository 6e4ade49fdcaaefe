"""What a run will take on this machine, in time and memory: measured pieces times how often its tasks need them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table

from imagefolder.config import TrainingConfig, config_hash, to_dict
from imagefolder.distributed import is_main
from imagefolder.errors import InputError
from imagefolder.evaluation.perturbation import SHARES, depths_for
from imagefolder.evaluation.preview import REAL
from imagefolder.evaluation.protocols import BATCH
from imagefolder.progress import console
from imagefolder.training.schedule import adversarial_step
from imagefolder.training.state import saved_step
from imagefolder.training.token_cache import encoded_share
from leaderboard.reference_files import reference_extractor
from reproductions.executor import Here, Task
from reproductions.graph import graph, task_name
from reproductions.options import Options
from reproductions.plan import RowPlan, plan_rows
from reproductions.printing import machine
from reproductions.proxies import BATCH as PROXY_BATCH
from reproductions.proxies import is_proxy_done, make_extractor, train_teacher
from reproductions.recipe import Table as Recipes
from reproductions.row import Row, TrainedModel
from reproductions.stages import run_evaluation, run_generator, run_tokenizer, run_tokens
from reproductions.timing import Cost, Kind, Piece, time_piece
from reproductions.timing_stage import LEAST_ROUNDS, WARM_UP, run_timing, sample_batch

TOO_LONG = 3 * 24 * 3600.0  # seconds of a run that is no good idea
SMALLER = "laptop"  # the scale that any machine can run
WORTH = 300  # training steps, and batches of images to evaluate, below which a run is over before it is timed

STAGES: dict[str, tuple[Callable[[Row], None], ...]] = {
    "proxies": (make_extractor, train_teacher),
    "tokenizers": (run_tokenizer,),
    "generators": (run_tokens, run_generator),
    "evaluation": (run_evaluation, run_timing),
}


@dataclass(frozen=True)
class Use:
    """How often a task needs a part of a piece: steps, or images."""

    kind: Kind
    part: str
    times: float


@dataclass(frozen=True)
class Estimate:
    """What the tasks of a run take, by name, on this machine.

    `tasks`: in the order to start them in: seed by seed, the longest work first. `seconds`: of each task; `memory`: its
    peak in bytes. `at_once`: how many of them run together.
    """

    tasks: list[Task]
    seconds: dict[str, float]
    memory: dict[str, float]
    at_once: int

    @property
    def run_seconds(self) -> float:
        """From the first task to the last."""
        return duration_of(self.tasks, self.seconds, self.at_once)

    @property
    def run_memory(self) -> float:
        """If the largest tasks run at the same time."""
        return sum(heapq.nlargest(self.at_once, self.memory.values()))

    @property
    def line(self) -> str:
        """In one sentence."""
        whole, work = self.run_seconds, sum(self.seconds.values())
        parts = {
            name: sum(self.seconds[task.name] for task in self.tasks if task.function in functions)
            for name, functions in STAGES.items()
        }
        shown = [f"{name} {in_words(part * whole / work)}" for name, part in parts.items() if part > 0.02 * work]
        stages = f" ({', '.join(shown)})" if len(shown) > 1 else ""
        return f"this run will take about {in_words(whole)}{stages}, {in_gigabytes(self.run_memory)} of {_memory()}"


def estimate(tasks: Sequence[Task], way: Here) -> Estimate | None:
    """What the tasks will take; None if that is not worth timing, or cannot be measured, which a line then says."""
    uses = {task.name: uses_of(task) for task in tasks}
    counted = [use for task in tasks if not task.alone for use in uses[task.name]]  # a row's timing is always short
    work = sum(use.times if use.part in STEPS else use.times / BATCH for use in counted)
    if work < WORTH:
        return None
    wanted: dict[str, Piece] = {}
    for task in tasks:
        for use in uses[task.name]:
            row = _row(task)
            key = _key(use.kind, row)
            known = wanted.get(key, Piece(use.kind, row, 0))
            wanted[key] = replace(known, times=known.times + use.times)
    with console.status("timing a few steps of every model"):
        try:
            found = dict(zip(wanted, way.map(time_piece, list(wanted.values())), strict=True))
        except InputError as error:  # a worker has died
            found = {"": str(error)}
    failed = [cost for cost in found.values() if isinstance(cost, str)]
    if failed:
        if is_main():
            console.print(f"how long this run will take could not be measured: {failed[0]}")
        return None
    costs = {key: cost for key, cost in found.items() if isinstance(cost, Cost)}
    seconds, memory = {}, {}
    for task in tasks:
        needed = [(use, costs[_key(use.kind, _row(task))]) for use in uses[task.name]]
        seconds[task.name] = _seconds(needed)
        memory[task.name] = max((cost.memory for _, cost in needed), default=0.0)
    ordered = sorted(longest_first(tasks, seconds), key=lambda task: _row(task).seed)
    return Estimate(ordered, seconds, memory, way.at_once)


def better_scale(table: Recipes, options: Options, expected: Estimate | None, way: Here) -> str | None:
    """A line that says why a scale is too much for this machine, and which one is not; None if it is not too much."""
    row = None if expected is None else _row(expected.tasks[0])
    if expected is None or row is None or row.given is not None or expected.run_seconds < TOO_LONG:
        return None
    name, memory = row.scale.name, in_gigabytes(expected.run_memory)
    takes = f"would take about {in_words(expected.run_seconds)} on this machine ({machine()})"
    line = f"scale {name} {takes} and {memory} of {_memory()}"
    if name == SMALLER or SMALLER not in table.scales:
        return line
    first = replace(options, scale=SMALLER, rows=(row.recipe.row,), seeds=(), fresh=False)
    try:
        tasks = graph(plan_rows(table, first))
    except InputError:  # the data or options do not fit it
        return line
    smaller = estimate(tasks, way)
    if smaller is None:
        return line
    return f"{line}; --scale {SMALLER} takes about {in_words(smaller.run_seconds)} a row"


def longest_first(tasks: Sequence[Task], seconds: Mapping[str, float]) -> list[Task]:
    """Tasks, of which each is listed after what it needs, in the order of how long they and what has to follow them
    take: started like this, fewer cores have nothing left to do at the end."""
    ahead = dict(seconds)
    for task in reversed(tasks):
        for need in set(task.after) & ahead.keys():
            ahead[need] = max(ahead[need], seconds[need] + ahead[task.name])
    return sorted(tasks, key=lambda task: -ahead[task.name])


def duration_of(tasks: Sequence[Task], seconds: Mapping[str, float], at_once: int) -> float:
    """When the last task ends, if they are started as `executor.execute` does."""
    waiting = [task for task in tasks if not task.alone]
    running, ended, now = list[tuple[float, str]](), set[str](), 0.0
    while waiting or running:
        for task in [task for task in waiting if ended.issuperset(task.after)][: at_once - len(running)]:
            heapq.heappush(running, (now + seconds[task.name], task.name))
            waiting.remove(task)
        now, name = heapq.heappop(running)
        ended.add(name)
    return now + sum(seconds[task.name] for task in tasks if task.alone)


def print_estimate(plans: Sequence[RowPlan], expected: Estimate) -> None:
    """What every row takes by stage. A stage that rows share counts in the first of them."""
    table = Table(box=None, pad_edge=False)
    for column in ("row", "seed", *STAGES, "in all", "memory"):
        table.add_column(column, justify="left" if column == "row" else "right")
    tasks = {task.name: task for task in expected.tasks}
    for row in (plan.row for plan in plans):
        cells, names = [], list[str]()
        for functions in STAGES.values():
            stages = [tasks[name] for f in functions if (name := _task_name(f, row)) in tasks]
            own = [task.name for task in stages if _row(task) == row]
            names += own
            shared = "shared" if stages else "-"
            cells.append(in_words(sum(expected.seconds[name] for name in own)) if own else shared)
        whole, most = (sum(expected.seconds[n] for n in names), max((expected.memory[n] for n in names), default=0.0))
        table.add_row(row.recipe.row, str(row.seed), *cells, in_words(whole), in_gigabytes(most))
    console.print(table)
    if expected.at_once > 1:
        console.print(f"up to {expected.at_once} stages run at once")


def in_words(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 2 h 10 min, 23 days."""
    if seconds < 90:
        return f"{max(round(seconds / 5) * 5, 1)} s"
    minutes = round(seconds / 60)
    if minutes >= 100:
        minutes = round(minutes / 10) * 10
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    days = round(minutes / (24 * 60))
    return f"{days:,} days"


def in_gigabytes(size: float) -> str:
    """Bytes as GB, with one digit below ten."""
    gigabytes = size / 1e9
    return f"{gigabytes:.0f} GB" if gigabytes >= 9.95 else f"{gigabytes:.1f} GB"


STEPS = {"step", "early", "late"}
"""Parts that count steps; the others count images."""


def uses_of(task: Task) -> list[Use]:
    """What is left to do for a task."""
    return [use for use in _USES[task.function](_row(task)) if use.times > 0]


def _of_extractor(row: Row) -> list[Use]:
    if is_proxy_done(reference_extractor(row.shared.name), row):
        return []
    steps, real = row.scale.proxy_steps, row.dataset.n_train + row.dataset.n_test
    return [
        Use("extractor", "step", steps),
        Use("features", "features", real + row.dataset.n_test),
        Use("training images", "read", steps * PROXY_BATCH + real + row.dataset.n_test),
    ]


def _of_teacher(row: Row) -> list[Use]:
    steps = row.scale.proxy_steps
    return [Use("teacher", "step", steps), Use("training images", "read", steps * PROXY_BATCH)]


def _of_tokenizer(row: Row) -> list[Use]:
    training, done = row.training, _steps_done(row, row.tokenizer)
    early = max(adversarial_step(training, row.loss) - done, 0) if row.loss.adversarial else 0
    left = training.steps - done
    shown, previews = min(row.scale.preview_images, row.dataset.n_test) / row.processes, _previews(row, training, done)
    uses = [
        Use("tokenizer", "early", early),
        Use("tokenizer", "late", left - early),
        Use("training images", "read", left * training.batch_size / row.processes),
        Use("coding", "encode", previews * shown),
        Use("coding", "decode", previews * shown),
        Use("features", "features", (previews + bool(previews)) * shown),  # the originals once
    ]
    if training.evaluate_every:
        images = -(-left // training.evaluate_every) * _evaluated(row) / row.processes
        uses += [Use("coding", "encode", images), Use("coding", "decode", images)]
        uses += [Use("features", "features", 2 * images), Use("training images", "read", images)]
    return uses


def _of_tokens(row: Row) -> list[Use]:
    images, views = row.dataset.n_train, row.scale.views
    left = images * views * (1 - (0 if row.fresh else encoded_share(row.tokens, images, views))) / row.processes
    return [Use("coding", "encode", left), Use("training images", "read", left)]


def _of_generator(row: Row) -> list[Use]:
    assert row.generator is not None
    training = row.scale.generator_training
    done = _steps_done(row, row.generator)
    left, previews = training.steps - done, _previews(row, training, done)
    reads = 0 if row.scale.views else left * training.batch_size
    real = 0 if row.scale.published or not previews else min(REAL, row.dataset.n_train)
    shown = previews * row.scale.preview_images
    return [
        Use("generator", "step", left),
        Use("sampling", "image", shown / row.processes),
        Use("features", "features", (shown + real) / row.processes),
        Use("training images", "read", (reads + real) / row.processes),
    ]


def _of_evaluation(row: Row) -> list[Use]:
    tests, trains = _evaluated(row) / row.processes, row.dataset.n_train / row.processes
    samples = row.scale.samples / row.processes
    encoded = decoded = features = pairs = reads = sampled = 0.0
    for name in row.recipe.measures:
        if name == "reconstruction":
            encoded, decoded, features = encoded + tests, decoded + tests, features + 2 * tests
            pairs, reads = pairs + tests, reads + tests
        elif name == "perturbation":
            settings = len(SHARES) * len(depths_for(row.recipe.tokenizer.codebook_size))
            encoded, decoded, reads = encoded + tests, decoded + settings * tests, reads + tests
            features += (1 + settings) * tests
        elif name == "probe":  # of two kinds of features
            encoded, reads = encoded + 2 * (tests + trains), reads + 2 * (tests + trains)
        elif name == "generation":
            real = 0 if row.scale.published else trains  # the published reference is a file
            drawn = samples * row.scale.sampling_seeds
            plain = 0 if row.recipe.sampling else drawn  # without guidance: half the work
            sampled, features = sampled + drawn + plain / 2, features + drawn + plain + real
            reads += real
        elif name == "evaluators":  # every set of images through several programs
            encoded, decoded, pairs = encoded + tests, decoded + tests, pairs + tests
            sampled, features = sampled + samples, features + 12 * tests + 6 * samples + 2 * trains
            reads += tests + 2 * trains
    return [
        Use("coding", "encode", encoded),
        Use("coding", "decode", decoded),
        Use("features", "features", features),
        Use("features", "pairs", pairs),
        Use("training images", "read", reads),
        Use("sampling", "image", sampled),
    ]


def _of_timing(row: Row) -> list[Use]:
    rounds = WARM_UP + LEAST_ROUNDS
    samples = 0 if row.recipe.generator is None else rounds * sample_batch(row)
    return [
        Use("sampling", "image", samples),
        Use("tokenizer", "late", rounds if row.given is None else 0),
        Use("generator", "step", rounds if row.given is None and samples else 0),
    ]


_USES: dict[Callable[..., None], Callable[[Row], list[Use]]] = {
    make_extractor: _of_extractor,
    train_teacher: _of_teacher,
    run_tokenizer: _of_tokenizer,
    run_tokens: _of_tokens,
    run_generator: _of_generator,
    run_evaluation: _of_evaluation,
    run_timing: _of_timing,
}


def _evaluated(row: Row) -> int:
    return row.dataset.n_test if row.test_images is None else min(row.test_images, row.dataset.n_test)


def _previews(row: Row, training: TrainingConfig, done: int) -> int:
    """How many previews of a training are left after its first steps."""
    every = row.scale.preview_every
    return training.steps // every - done // every if every else 0


def _steps_done(row: Row, model: TrainedModel) -> int:
    return 0 if row.fresh else saved_step(model.folder)


def _seconds(needed: Sequence[tuple[Use, Cost]]) -> float:
    """Images are read while a GPU computes, but a CPU does one or the other."""
    found = {"read": 0.0, "compute": 0.0}
    for use, cost in needed:
        found["read" if use.part == "read" else "compute"] += use.times * cost.seconds[use.part]
    return max(found.values()) if torch.cuda.is_available() else sum(found.values())


def _key(kind: Kind, row: Row) -> str:
    """The same for pieces that do the same work, whatever their names, seeds and weights."""
    tokenizer, generator = (
        None if model is None else to_dict(replace(model, name="any"))
        for model in (row.recipe.tokenizer, row.recipe.generator)
    )
    decides: dict[Kind, Any] = {
        "teacher": row.teacher.stem,
        "tokenizer": [tokenizer, to_dict(row.training), to_dict(row.loss)],
        "generator": [tokenizer, generator, to_dict(row.scale.generator_training)],
        "coding": tokenizer,
        "sampling": [tokenizer, generator, row.sampling.guidance > 0, row.sampling.top_k, row.sampling.batch_size],
    }
    return f"{kind} {config_hash({'of': decides.get(kind)})}"


def _task_name(function: Callable[[Row], None], row: Row) -> str | None:
    return None if function is run_generator and row.generator is None else task_name(function, row)


def _memory() -> str:
    return "GPU memory" if torch.cuda.is_available() else "memory"


def _row(task: Task) -> Row:
    return task.arguments[0]
