"""The stages that rows still need, each once, and what each waits for."""

from __future__ import annotations

from dataclasses import dataclass

from reproductions.job import Job, has_record, is_proxy_done, is_trained, needs_teacher
from reproductions.recipe import Recipe
from reproductions.scheduler import Task
from reproductions.stages import (
    run_evaluation,
    run_generator,
    run_tokenizer,
    run_tokens,
    train_extractor,
    train_teacher,
)


@dataclass(frozen=True)
class Plan:
    """One row with one seed, and which of its stages are finished already."""

    job: Job
    recipe: Recipe
    order: int
    """place of the row in its table"""
    shared: bool
    """other rows of the table use the same tokenizer"""
    tokenizer_done: bool
    generator_done: bool
    recorded: bool
    fresh: bool
    """everything is done anew, whatever is there"""

    @property
    def name(self) -> str:
        return f"{self.recipe.row} seed {self.job.seed}"

    @property
    def task(self) -> str:
        """Name of the stage that ends the row: no other table, scale or data set has it."""
        return f"{self.job.table} {self.job.shared.name} {self.name}"


def plan(job: Job, recipe: Recipe, order: int, shared: bool, fresh: bool) -> Plan:
    """What is left to do for a row; everything if `fresh`."""
    given = job.tokenizer_weights is not None
    tokenizer = given or (not fresh and is_trained(job.tokenizer(recipe)))
    generator = given or recipe.generator is None or (tokenizer and is_trained(job.generator(recipe)))
    recorded = tokenizer and generator and not given and not fresh and has_record(job, recipe)
    return Plan(job, recipe, order, shared, tokenizer, generator, recorded, fresh)


def graph(plans: list[Plan]) -> list[Task]:
    """Stages of all rows in an order in which they can run; those that others wait for come first."""
    tasks: dict[str, Task] = {}
    for row in plans:
        if not row.recorded:
            _add_row(tasks, row)
    stages = (train_extractor, train_teacher, run_tokenizer, run_tokens, run_generator, run_evaluation)
    return sorted(tasks.values(), key=lambda task: stages.index(task.function))


def _add_row(tasks: dict[str, Task], row: Plan) -> None:
    job, recipe = row.job, row.recipe
    seed = f"seed {job.seed}"

    def add(name: str, function: object, arguments: tuple, after: list[str]) -> str:
        tasks.setdefault(name, Task(name, function, arguments, tuple(after)))
        return name

    needs = []
    if not job.scale.published and not is_proxy_done(job.extractor, job):
        needs.append(add(f"extractor {job.shared.name}", train_extractor, (job,), []))
    if not row.tokenizer_done:
        before = []
        if not job.scale.published and needs_teacher(job, recipe) and not is_proxy_done(job.teacher(recipe), job):
            before.append(add(f"{job.teacher(recipe).stem} {job.shared.name}", train_teacher, (job, recipe), []))
        name = f"tokenizer {job.tokenizer(recipe).name} {seed}"
        needs.append(add(name, run_tokenizer, (job, recipe), before))
    if not row.generator_done:
        before = [need for need in needs if need.startswith("tokenizer")]
        if job.scale.views:
            before = [add(f"tokens {job.tokenizer(recipe).name} {seed}", run_tokens, (job, recipe), before)]
        needs.append(add(f"generator {job.generator(recipe).name} {seed}", run_generator, (job, recipe), before))
    add(row.task, run_evaluation, (job, recipe, row.order, row.shared, row.fresh), needs)
