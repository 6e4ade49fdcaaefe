"""Submitting a graph of stages: to Slurm, or run here in the same wrapper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from slurm.batch import sbatch_text, slurm_executor
from slurm.here import fitted, run_debug, run_local
from slurm.jobs import StageJob
from slurm.journal import Journal
from slurm.profile import Profile, Settings, changed, load_profile
from slurm.stage import SlurmError, Stage, ordered
from slurm.status import LIVE, StageStatus, read_status


@dataclass(frozen=True)
class Group:
    """Stages submitted together: one job, or an array where several want the same and wait for the same."""

    stages: tuple[Stage, ...]
    settings: Settings
    ok: tuple[str, ...]
    """stages that must have finished, less those that have"""
    ended: tuple[str, ...]
    """stages that must have ended, less those that have"""

    @property
    def title(self) -> str:
        """Name of the Slurm job."""
        text = self.stages[0].name if len(self.stages) == 1 else self.stages[0].kind
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "stage"


@dataclass(frozen=True)
class Plan:
    """What a submission does with each stage."""

    groups: list[Group]
    finished: list[str]
    live: list[StageStatus]
    replaced: list[StageStatus]
    """waiting jobs that are cancelled, as they would not wait for what is now submitted anew"""
    predecessors: dict[str, str]
    """running jobs of stages that are submitted anew, by stage: the new job waits for the old one's end"""

    @property
    def stages(self) -> list[Stage]:
        return [stage for group in self.groups for stage in group.stages]


def submit(
    run_folder: Path | str,
    stages: Sequence[Stage],
    profile: Profile | str | Path | None = None,
    overrides: Iterable[str] = (),
    dry_run: bool = False,
    fresh: bool = False,
) -> dict[str, str]:
    """Run stages, each once what it waits for is done. Live jobs of the run are kept, finished stages skipped.

    On cluster slurm this returns once all is submitted; on local and debug, when all has ended.

    Args:
        run_folder: gets slurm/ with journal and logs; must be seen by all nodes.
        profile: see `load_profile`; a `Profile` is taken as it is, without overrides.
        dry_run: print the graph, and the text of every job, and leave it at that.
        fresh: submit what the run folder holds for finished too; for callers that only pass what is still to be done.

    Returns:
        Reason by name of the stages that failed here; {} from Slurm, where `python -m slurm status` knows more.

    Raises:
        SlurmError: an impossible graph, profile or request. Then nothing has been submitted.
    """
    profile = profile if isinstance(profile, Profile) else load_profile(profile, overrides)
    journal, stages = Journal(run_folder), ordered(stages)
    if dry_run:
        _show(journal, _planned(journal, stages, profile, fresh, dry_run=True), profile)
        return {}
    if profile.cluster == "slurm" and shutil.which("sbatch") is None:
        raise SlurmError("no Slurm on this machine (sbatch is not on the path): use a login node, or profile local")
    with journal.lock():
        plan = _planned(journal, stages, profile, fresh)
        _tell(plan)
        for status in plan.live:
            if status.cluster != profile.cluster:
                raise SlurmError(f"{status.name!r} is {status.state} on cluster {status.cluster}: wait, or cancel it")
        journal.save_graph(stages, profile)
        if profile.cluster == "local":
            return run_local(journal, plan.stages, [status.name for status in plan.live], profile)
        if profile.cluster == "debug":
            return run_debug(journal, plan.stages, profile)
        _submit_to_slurm(journal, plan)
    if plan.groups:
        print(f"python -m slurm status {run_folder}   shows how they stand")
    return {}


def processes_of(profile: str | Path | None, overrides: Iterable[str], kind: str) -> int:
    """How many processes a job of this kind has; arguments as of `load_profile`."""
    loaded = load_profile(profile, overrides)
    if loaded.cluster == "debug":
        return 1
    settings = loaded.settings(kind)
    return fitted(settings).tasks if loaded.cluster == "local" else settings.nodes * settings.tasks


def resubmit(run_folder: Path | str, profile: str | None, overrides: Iterable[str], dry_run: bool) -> dict[str, str]:
    """Submit what failed, was cancelled or never ran, and what depends on it; arguments and result as of `submit`."""
    journal = Journal(run_folder)
    if not (journal.folder / "graph.pkl").exists():
        raise SlurmError(f"{journal.run} holds no submitted run (no slurm/graph.pkl); give the run's folder")
    chosen = load_profile(profile, overrides) if profile else changed(journal.graph()["profile"], overrides, "profile")
    return submit(run_folder, journal.stages(), chosen, dry_run=dry_run)


def _planned(journal: Journal, stages: list[Stage], profile: Profile, fresh: bool, dry_run: bool = False) -> Plan:
    names = [stage.name for stage in stages]
    statuses = read_status(journal, strict=not dry_run)  # a dry run needs no Slurm
    known = {name: status.state for name, status in statuses.items()}
    finished, live, replaced, predecessors = [], [], [], {}
    anew: list[Stage] = []
    for stage in stages:
        state = known.get(stage.name, "not submitted")
        for need in stage.needs:
            if need not in names and known.get(need) not in ("finished", *LIVE):
                raise SlurmError(f"stage {stage.name!r} waits for {need!r}, which is not given, done or running")
        after_new = any(need == other.name for need in stage.needs for other in anew)
        if state in LIVE and not after_new:
            live.append(statuses[stage.name])
        elif state == "finished" and not fresh and not after_new:
            finished.append(stage.name)
        else:
            anew.append(stage)
            if state == "running":
                predecessors[stage.name] = statuses[stage.name].job
            elif state in LIVE:
                replaced.append(statuses[stage.name])
    open_ = {stage.name for stage in anew} | {name for name, state in known.items() if state in LIVE}
    groups: dict[tuple, list[Stage]] = {}
    settings = {stage.kind: profile.settings(stage.kind) for stage in stages}
    for stage in anew:
        ok = tuple(need for need in stage.after if need in open_)
        ended = tuple(need for need in stage.after_any if need in open_)
        alone = stage.name if stage.name in predecessors else ""
        groups.setdefault((stage.kind, ok, ended, alone), []).append(stage)
    planned = [Group(tuple(group), settings[kind], ok, ended) for (kind, ok, ended, _), group in groups.items()]
    return Plan(planned, finished, live, replaced, predecessors)


def _tell(plan: Plan) -> None:
    for name in plan.finished:
        print(f"{name}: finished already")
    for status in plan.live:
        print(f"{status.name}: {status.state} already, job {status.job}")


def _submit_to_slurm(journal: Journal, plan: Plan) -> None:
    ids = {status.name: status.job for status in plan.live}
    submitted: list[str] = []
    _scancel([status.job for status in plan.replaced])
    try:
        for group in plan.groups:
            for stage, job in zip(group.stages, _submit_group(journal, group, plan, ids), strict=True):
                submitted.append(job)
                ids[stage.name] = job
                journal.submitted(stage.name, job, "slurm")
                print(f"{stage.name}: job {job}")
    except BaseException:
        _scancel(submitted)
        raise


def _submit_group(journal: Journal, group: Group, plan: Plan, ids: dict[str, str]) -> list[str]:
    dependency = _dependency(group, plan, ids)
    conf = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
    executor = slurm_executor(journal.jobs, group.settings, group.title, dependency)
    jobs = [StageJob.of(journal.run, stage, group.settings) for stage in group.stages]
    try:
        with submitit.helpers.clean_env():  # a job submitted from inside a job would inherit its settings
            os.environ.update(conf)
            return [job.job_id for job in executor.submit_array(jobs)]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = re.findall(r"error: (.+)", str(error)) or str(error).split("\n")
        asked = ", ".join(f"{key}={value}" for key, value in group.settings.model_dump(exclude_defaults=True).items())
        raise SlurmError(
            f"Slurm refused {group.stages[0].name!r}: {said[-1].strip()} (kind {group.stages[0].kind}: {asked})"
        ) from None


def _dependency(group: Group, plan: Plan, ids: dict[str, str]) -> str:
    """In sbatch's words; stages that have no id yet stand there by name."""

    def listed(kind: str, jobs: list[str]) -> list[str]:
        return [":".join([kind, *jobs])] if jobs else []

    old = [plan.predecessors[stage.name] for stage in group.stages if stage.name in plan.predecessors]
    ok = [ids.get(name, f"<{name}>") for name in group.ok]
    ended = [ids.get(name, f"<{name}>") for name in group.ended]
    return ",".join(listed("afterok", ok) + listed("afterany", ended + old))


def _scancel(jobs: list[str]) -> None:
    if jobs:
        subprocess.run(["scancel", *jobs], timeout=60, check=False)


def _show(journal: Journal, plan: Plan, profile: Profile) -> None:
    """The graph, and for Slurm the text of every job."""
    _tell(plan)
    ids = {status.name: status.job for status in plan.live}
    for group in plan.groups:
        for stage in group.stages:
            waits = [*group.ok, *(f"{name} (any end)" for name in group.ended)]
            settings = group.settings
            size = f"{settings.nodes} node(s) x {settings.tasks} process(es), {settings.gpus} GPU(s) per node"
            print(f"{stage.name}  [{stage.kind}: {size}]" + (f"  after: {', '.join(waits)}" if waits else ""))
    if profile.cluster != "slurm":
        print(f"cluster {profile.cluster}: these run on this machine; --profile slurm shows jobs for Slurm")
        return
    for group in plan.groups:
        dependency = _dependency(group, plan, ids)
        print(f"\n==> {', '.join(stage.name for stage in group.stages)}")
        print(sbatch_text(journal.jobs, group.settings, group.title, dependency, len(group.stages)).rstrip())
