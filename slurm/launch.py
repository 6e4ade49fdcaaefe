"""Submitting a graph of stages: to Slurm, or run here in the same wrapper."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from slurm.batch import sbatch_text, slurm_executor
from slurm.files import PRIVATE, umask, writing
from slurm.here import fitted, run_debug, run_local
from slurm.jobs import StageJob
from slurm.journal import Journal
from slurm.profile import Profile, changed, load_profile
from slurm.settings import Settings
from slurm.stage import SlurmError, Stage, one_line, ordered
from slurm.states import scancel, wrong_to_sbatch
from slurm.status import LIVE, StageStatus, live_strays, read_status


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
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:200].strip("-") or "stage"


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
    prepare: Callable[[], None] | None = None,
) -> dict[str, str]:
    """Run stages, each once what it waits for is done. Live jobs of the run are kept, finished stages skipped.

    On cluster slurm this returns once all is submitted; on local and debug, when all has ended.

    Args:
        run_folder: gets slurm/ with journal and logs; must be seen by all nodes.
        profile: see `load_profile`; a `Profile` is taken as it is, without overrides.
        dry_run: print the graph, and the text of every job, and leave it at that.
        fresh: submit what the run folder holds for finished too; for callers that only pass what is still to be done.
        prepare: called once all is checked and nothing is submitted yet, while no other process submits into the run:
            for what must not happen because of a typo, such as setting earlier results aside. Not with `dry_run`.

    Returns:
        Reason by name of the stages that failed here; {} from Slurm, where `python -m slurm status` knows more.

    Raises:
        SlurmError: an impossible run folder, graph, profile or request. Then nothing has been submitted.
    """
    require_plain(Path(run_folder))
    profile = profile if isinstance(profile, Profile) else load_profile(profile, overrides)
    journal, stages = Journal(run_folder), ordered(stages)
    if dry_run:
        _show(journal, _planned(journal, stages, profile, fresh, dry_run=True), profile)
        return {}
    for program in ("sbatch", "srun") if profile.cluster == "slurm" else ():
        if shutil.which(program) is None:
            raise SlurmError(
                f"no Slurm on this machine ({program} is not on the path): use a login node, or profile local"
            )
    with journal.lock():
        plan = _planned(journal, stages, profile, fresh)
        _tell(plan)
        _require_possible(journal, plan, profile)
        stages = journal.merged(stages)
        if prepare is not None:
            _require_nothing_lost(journal, plan, profile)
            prepare()
        journal.save_graph(stages, profile)
        if profile.cluster == "local":
            return run_local(journal, plan.stages, [status.name for status in plan.live], profile)
        if profile.cluster == "debug":
            return run_debug(journal, plan.stages, profile)
        _submit_to_slurm(journal, plan)
    if plan.groups:
        print(f"python -m slurm status {run_folder}   shows how they stand")
    return {}


def require_plain(run_folder: Path) -> None:
    """Raise `SlurmError` for a path that Slurm or a batch file would take for another one.

    Checked on every cluster: a run may go on elsewhere.
    """
    path = str(run_folder.absolute())
    said = None
    if "%" in path:
        said = "it holds %, and Slurm replaces %n, %j and the like in the names of logs"
    elif "\\" in path:
        said = "it holds a backslash, which Slurm drops from the names of logs"
    elif re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", path):
        said = "it holds a line break, a control character or what is no text"
    if said is not None:
        raise SlurmError(f"run folder {path!r} cannot be used: {said}; choose another, or rename it")


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
    graph, stages = journal.graph(), journal.stages()
    if not stages:
        raise SlurmError(f"{journal.run} holds no submitted run (no slurm/graph.json); give the run's folder")
    if missing := graph["stages"].keys() - {stage.name for stage in stages}:
        raise SlurmError(f"the submission of {', '.join(sorted(missing))} was broken off: repeat the command it was")
    chosen = load_profile(profile, overrides) if profile else changed(graph["profile"], overrides, "profile")
    return submit(run_folder, stages, chosen, dry_run=dry_run)


def _require_possible(journal: Journal, plan: Plan, profile: Profile) -> None:
    """Raise `SlurmError` for what would fail, or start something twice, once the run has been changed."""
    for status in plan.live:
        if status.cluster != profile.cluster:
            raise SlurmError(f"{status.name!r} is {status.state} on cluster {status.cluster}: wait, or cancel it")
    if strays := live_strays(journal):
        raise SlurmError(
            f"job(s) {', '.join(strays)} wait or run, and {journal.folder}/jobs.jsonl does not say for which stages: "
            f"it is damaged, or a submission was killed; wait, or end them with python -m slurm cancel {journal.run}"
        )
    for group in plan.groups:
        if profile.cluster == "local" and group.settings.nodes > 1:
            name, nodes = group.stages[0].name, group.settings.nodes
            raise SlurmError(f"{name}: {nodes} nodes need Slurm; on cluster local set nodes=1")


def _require_nothing_lost(journal: Journal, plan: Plan, profile: Profile) -> None:
    """Raise `SlurmError` for what must not be prepared: jobs still work with what there is, or Slurm knows no such."""
    working = {status.name: status.job for status in plan.live} | plan.predecessors
    if working:
        name, job = next(iter(working.items()))
        raise SlurmError(
            f"{name!r} still waits or runs (job {job}): wait, or python -m slurm cancel {journal.run}, before it is "
            "done afresh"
        )
    if profile.cluster == "slurm":
        for group in {group.settings.model_dump_json(): group for group in plan.groups}.values():
            with _outside_of_jobs():
                said = wrong_to_sbatch(sbatch_text(journal.jobs, group.settings, group.title, ""))
            if said is not None:
                raise _refusal(group, said)


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
        print(f"{one_line(name)}: finished already")
    for status in plan.live:
        print(f"{one_line(status.name)}: {status.state} already, job {status.job}")


def _submit_to_slurm(journal: Journal, plan: Plan) -> None:
    ids = {status.name: status.job for status in plan.live}
    submitted: list[str] = []
    scancel([status.job for status in plan.replaced])
    try:
        for group in plan.groups:
            jobs = _submit_group(journal, group, plan, ids)
            submitted += jobs
            for stage, job in zip(group.stages, jobs, strict=True):
                ids[stage.name] = job
                journal.submitted(stage.name, job, "slurm")
                print(f"{one_line(stage.name)}: job {job}")
    except BaseException:
        with contextlib.suppress(SlurmError):  # what went wrong before says more
            scancel(submitted)
        raise


def _submit_group(journal: Journal, group: Group, plan: Plan, ids: dict[str, str]) -> list[str]:
    dependency = _dependency(group, plan, ids)
    executor = slurm_executor(journal.jobs, group.settings, group.title, dependency)
    try:
        with _outside_of_jobs(), writing(journal.jobs), umask(PRIVATE) as usual:
            jobs = [StageJob.of(journal.run, stage, group.settings, usual) for stage in group.stages]
            return [job.job_id for job in executor.submit_array(jobs)]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = re.findall(r"error: (.+)", str(error)) or str(error).split("\n")
        raise _refusal(group, said[-1].strip()) from None


def _refusal(group: Group, said: str) -> SlurmError:
    """With what was asked for, less the values of variables."""
    settings = group.settings.model_dump(exclude_defaults=True, exclude={"environment"})
    asked = ", ".join(f"{key}={value}" for key, value in settings.items())
    return SlurmError(f"Slurm refused {group.stages[0].name!r}: {said} (kind {group.stages[0].kind}: {asked})")


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """A job submitted from inside a job would inherit its settings."""
    conf = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(conf)
        yield


def _dependency(group: Group, plan: Plan, ids: dict[str, str]) -> str:
    """In sbatch's words; stages that have no id yet stand there by name."""

    def listed(kind: str, jobs: list[str]) -> list[str]:
        return [":".join([kind, *jobs])] if jobs else []

    old = [plan.predecessors[stage.name] for stage in group.stages if stage.name in plan.predecessors]
    ok = [ids.get(name, f"<{one_line(name)}>") for name in group.ok]
    ended = [ids.get(name, f"<{one_line(name)}>") for name in group.ended]
    return ",".join(listed("afterok", ok) + listed("afterany", ended + old))


def _show(journal: Journal, plan: Plan, profile: Profile) -> None:
    """The graph, and for Slurm the text of every job, without the values of its variables."""
    _tell(plan)
    ids = {status.name: status.job for status in plan.live}
    for group in plan.groups:
        for stage in group.stages:
            waits = [*group.ok, *(f"{name} (any end)" for name in group.ended)]
            settings = group.settings
            size = f"{settings.nodes} node(s) x {settings.tasks} process(es), {settings.gpus} GPU(s) per node"
            after = f"  after: {', '.join(waits)}" if waits else ""
            print(one_line(f"{stage.name}  [{stage.kind}: {size}]{after}"))
    if profile.cluster != "slurm":
        print(f"cluster {profile.cluster}: these run on this machine; --profile slurm shows jobs for Slurm")
        return
    for group in plan.groups:
        dependency = _dependency(group, plan, ids)
        settings = group.settings.model_copy(update={"environment": dict.fromkeys(group.settings.environment, "***")})
        print(f"\n==> {one_line(', '.join(stage.name for stage in group.stages))}")
        print(sbatch_text(journal.jobs, settings, group.title, dependency, len(group.stages)).rstrip())
