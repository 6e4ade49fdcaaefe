"""The stages that rows still need, each once, and what each waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reproductions.executor import Task
from reproductions.plan import RowPlan
from reproductions.proxies import is_proxy_done, train_extractor, train_teacher
from reproductions.row import Row
from reproductions.stages import run_evaluation, run_generator, run_tokenizer, run_tokens


def graph(plans: Sequence[RowPlan]) -> list[Task]:
    """Stages of all rows, depth first: a row's stages come right before its evaluation, so that the first row's result
    is recorded before the last row's training starts, and the first seed's table before the second seed's."""
    tasks: dict[str, Task] = {}

    def add(function: Callable[[Row], None], row: Row, needs: list[str]) -> str:
        name = task_name(function, row)
        tasks.setdefault(name, Task(name, function, (row,), tuple(needs)))
        return name

    for plan in plans:
        if not plan.recorded:
            _add_row(add, plan)
    return list(tasks.values())


def task_name(function: Callable[[Row], None], row: Row) -> str:
    """A stage's name: the same for rows that share it, unique otherwise."""
    if function is train_extractor:
        return f"extractor {row.shared.name}"
    if function is train_teacher:
        return f"{row.teacher.stem} {row.shared.name}"
    if function is run_evaluation:
        return row.full_name
    if function is run_generator and row.generator is not None:
        return f"generator {row.generator.folder.name} seed {row.seed}"
    kind = "tokens" if function is run_tokens else "tokenizer"
    return f"{kind} {row.tokenizer.folder.name} seed {row.seed}"


def _add_row(add: Callable[[Callable[[Row], None], Row, list[str]], str], plan: RowPlan) -> None:
    row, needs = plan.row, []
    if not row.scale.published and not is_proxy_done(row.extractor, row):
        needs.append(add(train_extractor, row, []))
    tokenizer = []
    if not plan.tokenizer_done:
        teacher = []
        if row.needs_teacher and not row.scale.published and not is_proxy_done(row.teacher, row):
            teacher.append(add(train_teacher, row, []))
        tokenizer.append(add(run_tokenizer, row, teacher))
    generator = []
    if not plan.generator_done:
        generator.append(add(run_generator, row, [add(run_tokens, row, tokenizer)] if row.scale.views else tokenizer))
    add(run_evaluation, row, [*needs, *tokenizer, *generator])
