"""The typed content of a run's files: the graph, and what happened to its jobs."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, model_validator

from slurm.stage import Stage

Cluster = Literal["slurm", "local"]
JOBS: dict[Cluster, str] = {"slurm": r"[0-9]{1,10}(_[0-9]{1,10})?", "local": r"[0-9]{1,9}"}
"""patterns of the job ids of each cluster; anything else is damage, and must not become part of a path or a command"""


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _now() -> datetime:
    return datetime.now(UTC)


class _JobEvent(BaseModel):
    model_config = ConfigDict(frozen=True)

    stage: str
    job: str
    time: Annotated[datetime, AfterValidator(_aware)] = Field(default_factory=_now)


class Submitted(_JobEvent):
    """A stage's job was handed to its cluster."""

    event: Literal["submitted"] = "submitted"
    cluster: Cluster

    @model_validator(mode="after")
    def _has_a_job_id(self) -> Submitted:
        if not re.fullmatch(JOBS[self.cluster], self.job):
            raise ValueError(f"{self.job!r} is no job id of {self.cluster}")
        return self


class Started(_JobEvent):
    """An attempt of a job began: its first start, or one after a requeue."""

    event: Literal["started"] = "started"
    job: Annotated[str, Field(pattern=rf"^({JOBS['slurm']})$")]
    restarts: int
    nodes: str
    step: int | None
    """the step from which it resumes, if the stage has any"""
    mark: tuple[FiniteFloat, FiniteFloat] | None
    """`progress_mark` at the start"""


JobEvent: TypeAdapter[Submitted | Started] = TypeAdapter(Annotated[Submitted | Started, Field(discriminator="event")])


class Holder(BaseModel):
    """holder.json: the process that holds the lock."""

    model_config = ConfigDict(frozen=True)

    pid: Annotated[int, Field(gt=0, lt=2**31)]
    host: str


class StageEntry(BaseModel):
    """What graph.json says about a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: tuple[str, ...]
    after_any: tuple[str, ...]
    kind: str
    progress: Path | None
    steps: int | None

    @classmethod
    def of(cls, stage: Stage) -> StageEntry:
        progress = stage.progress.absolute() if stage.progress else None
        return cls(after=stage.after, after_any=stage.after_any, kind=stage.kind, progress=progress, steps=stage.steps)


class RunGraph(BaseModel):
    """graph.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: dict[str, Any]
    stages: dict[str, StageEntry]
    pickles: Annotated[tuple[str, ...], Field(alias="graph.pkl")]
    """hashes that graph.pkl may have: of the current one, and of the one before if that was intact"""
