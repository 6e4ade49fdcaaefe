"""The stages that rows still need, each once, and what each waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reproductions.executor import Task
from reproductions.plan import RowPlan
from reproductions.proxies import is_proxy_done, make_extractor, train_teacher
from reproductions.row import Row
from reproductions.stages import run_evaluation, run_generator, run_tokenizer, run_tokens
from reproductions.timing_stage import run_timing


def graph(plans: Sequence[RowPlan]) -> list[Task]:
    """Stages of all rows, depth first: a row's stages come right before its evaluation, so that the first row's result
    is recorded before the last row's training starts, and the first seed's table before the second seed's. The rows
    are timed at the end, when nothing runs beside them."""
    tasks: dict[str, Task] = {}
    timings = []
    for plan in plans:
        needs = []
        if not plan.recorded:
            for task in _stages(plan):
                tasks.setdefault(task.name, task)
                needs = [task.name]  # the last one: the evaluation
        if not plan.timed:
            name = task_name(run_timing, plan.row)
            timings.append(Task(name, run_timing, (plan.row,), tuple(needs), alone=True))
    return [*tasks.values(), *timings]


def task_name(function: Callable[[Row], None], row: Row) -> str:
    """A stage's name: the same for rows that share it, unique otherwise."""
    if function is make_extractor:
        return f"extractor {row.shared.name}"
    if function is train_teacher:
        return f"{row.teacher.stem} {row.shared.name}"
    if function is run_evaluation:
        return row.full_name
    if function is run_timing:
        return f"timing {row.full_name}"
    if function is run_generator and row.generator is not None:
        return f"generator {row.generator.folder.name} seed {row.seed}"
    kind = "tokens" if function is run_tokens else "tokenizer"
    return f"{kind} {row.tokenizer.folder.name} seed {row.seed}"


def _stages(plan: RowPlan) -> list[Task]:
    """What one row still needs, in order; its evaluation is the last."""
    row, tasks = plan.row, []

    def stage(function: Callable[[Row], None], *needs: str) -> str:
        tasks.append(Task(task_name(function, row), function, (row,), needs))
        return tasks[-1].name

    needs = []  # of the trainings, too: previews need the extractor
    if not row.scale.published and not is_proxy_done(row.extractor, row):
        needs.append(stage(make_extractor))
    tokenizer = []
    if not plan.tokenizer_done:
        teacher = []
        if row.needs_teacher and not row.scale.published and not is_proxy_done(row.teacher, row):
            teacher.append(stage(train_teacher))
        tokenizer.append(stage(run_tokenizer, *needs, *teacher))
    generator = []
    if not plan.generator_done:
        before = [stage(run_tokens, *tokenizer)] if row.scale.views else tokenizer
        generator.append(stage(run_generator, *needs, *before))
    stage(run_evaluation, *needs, *tokenizer, *generator)
    return tasks
