"""Submitting a graph of stages: to Slurm, or to this machine in the same wrapper."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from imagefolder.errors import one_line
from imagefolder.files import writing
from slurm.batch import sbatch_text, slurm_executor
from slurm.events import Submitted
from slurm.files import PRIVATE, umask
from slurm.jobs import StageJob
from slurm.journal import Journal
from slurm.local import fitted, run_local
from slurm.profile import Profile, changed, load_profile
from slurm.settings import JobSettings
from slurm.stage import SlurmError, Stage, ordered
from slurm.states import sbatch_error, scancel
from slurm.status import LIVE, StageStatus, live_strays, read_status


@dataclass(frozen=True)
class JobGroup:
    """Stages submitted together: one job, or an array of those with the same kind that wait for the same stages."""

    stages: tuple[Stage, ...]
    settings: JobSettings
    ok: tuple[str, ...]
    """stages that must finish first, without those that already have"""
    ended: tuple[str, ...]
    """stages that must end first, without those that already have"""
    running: tuple[str, ...]
    """jobs of earlier submissions of these stages that still run, and must end first"""

    @property
    def title(self) -> str:
        """Name of the Slurm job."""
        text = self.stages[0].name if len(self.stages) == 1 else self.stages[0].kind
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:200].strip("-") or "stage"

    def dependency(self, jobs: dict[str, str]) -> str:
        """In sbatch's syntax, from the job ids of stages; a stage without one is there by its name."""
        ok = [jobs.get(name, f"<{one_line(name)}>") for name in self.ok]
        ended = [*(jobs.get(name, f"<{one_line(name)}>") for name in self.ended), *self.running]
        return ",".join(":".join([kind, *ids]) for kind, ids in (("afterok", ok), ("afterany", ended)) if ids)

    def refusal(self, reason: str) -> SlurmError:
        """With what was requested, without the values of variables."""
        settings = self.settings.model_dump(exclude_defaults=True, exclude={"environment"})
        requested = ", ".join(f"{key}={value}" for key, value in settings.items())
        stage = self.stages[0]
        return SlurmError(f"Slurm refused {stage.name!r}: {reason} (kind {stage.kind}: {requested})")


@dataclass(frozen=True)
class Submission:
    """What a submission does with each stage."""

    groups: list[JobGroup]
    finished: list[str]
    live: list[StageStatus]
    replaced: list[StageStatus]
    """waiting jobs that are cancelled, because they would not wait for a stage that is submitted again"""

    @property
    def stages(self) -> list[Stage]:
        return [stage for group in self.groups for stage in group.stages]


def submit(
    run_folder: Path | str,
    stages: Sequence[Stage],
    *,
    profile: Profile | str | Path | None = None,
    overrides: Iterable[str] = (),
    dry_run: bool = False,
    fresh: bool = False,
    prepare: Callable[[], None] | None = None,
) -> dict[str, str]:
    """Run stages, each once those it waits for are done. Live jobs of the run are kept, finished stages skipped.

    Returns after the submission to Slurm, or, on cluster local, when all stages have ended.

    Args:
        run_folder: gets slurm/ with the journal and logs; all nodes must see it.
        profile: see `load_profile`; a `Profile` is used as it is, without overrides.
        dry_run: only print the graph, and the text of every job.
        fresh: also submit stages that have finished in this run folder; for callers that pass only what is to be done.
        prepare: called after all checks and before the first submission, while no other process submits into the run:
            for what a typo must not cause, such as setting earlier results aside. Not called with `dry_run`.

    Returns:
        The reasons of failures by stage name on cluster local; {} from Slurm: see `python -m slurm status`.

    Raises:
        SlurmError: an impossible run folder, graph, profile or request. Then nothing has been submitted.
    """
    require_plain(Path(run_folder))
    profile = profile if isinstance(profile, Profile) else load_profile(profile, overrides)
    journal, stages = Journal(run_folder), ordered(stages)
    if dry_run:
        _show(journal, _planned(journal, stages, profile, fresh, strict=False), profile)  # needs no Slurm
        return {}
    for program in ("sbatch", "srun") if profile.cluster == "slurm" else ():
        if shutil.which(program) is None:
            raise SlurmError(
                f"no Slurm on this machine ({program} is not on the path): use a login node, or profile local"
            )
    with journal.lock():
        submission = _planned(journal, stages, profile, fresh)
        _print_kept(submission)
        _require_possible(journal, submission, profile)
        merged = journal.merged(stages)
        if prepare is not None:
            _require_unused(journal, submission, profile)
            prepare()
        journal.save_graph(merged, profile)
        if profile.cluster == "local":
            return run_local(journal, submission.stages, [status.name for status in submission.live], profile)
        _submit_to_slurm(journal, submission)
    if submission.groups:
        print(f"python -m slurm status {run_folder}   shows their status")
    return {}


def require_plain(run_folder: Path) -> None:
    """Raise `SlurmError` for a path that Slurm or a batch file would misread.

    Checked on every cluster, as a run may continue on another one.
    """
    path = str(run_folder.absolute())
    problem = None
    if "%" in path:
        problem = "it contains %, and Slurm replaces %n, %j etc. in the names of logs"
    elif "\\" in path:
        problem = "it contains a backslash, which Slurm drops from the names of logs"
    elif re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", path):
        problem = "it contains a line break, a control character or invalid text"
    if problem is not None:
        raise SlurmError(f"run folder {path!r} cannot be used: {problem}; choose another, or rename it")


def processes_of(profile: str | Path | None, overrides: Iterable[str], kind: str) -> int:
    """How many processes a job of this kind has; arguments as in `load_profile`."""
    loaded = load_profile(profile, overrides)
    settings = loaded.settings(kind)
    return fitted(settings).tasks if loaded.cluster == "local" else settings.nodes * settings.tasks


def resubmit(
    run_folder: Path | str, *, profile: str | None = None, overrides: Iterable[str] = (), dry_run: bool = False
) -> dict[str, str]:
    """Submit what failed, was cancelled or never ran, and what depends on it; arguments and result as in `submit`."""
    journal = Journal(run_folder)
    graph, stages = journal.graph(), journal.stages()
    if not stages:
        raise SlurmError(f"{journal.run} holds no submitted run (no slurm/graph.json); give the run's folder")
    if missing := graph.stages.keys() - {stage.name for stage in stages}:
        raise SlurmError(f"the submission of {', '.join(sorted(missing))} was interrupted: repeat that command")
    chosen = load_profile(profile, overrides) if profile else changed(graph.profile, overrides, "profile")
    return submit(run_folder, stages, profile=chosen, dry_run=dry_run)


def _require_possible(journal: Journal, submission: Submission, profile: Profile) -> None:
    """Raise `SlurmError` for what would fail, or start something twice."""
    for status in submission.live:
        if status.cluster != profile.cluster:
            raise SlurmError(f"{status.name!r} is {status.state} on cluster {status.cluster}: wait, or cancel it")
    if strays := live_strays(journal):
        raise SlurmError(
            f"job(s) {', '.join(strays)} wait or run, but {journal.folder}/jobs.jsonl does not say for which stages: "
            f"it is damaged, or a submission was killed; wait, or cancel them: python -m slurm cancel {journal.run}"
        )
    for group in submission.groups:
        if profile.cluster == "local" and group.settings.nodes > 1:
            name, nodes = group.stages[0].name, group.settings.nodes
            raise SlurmError(f"{name}: {nodes} nodes need Slurm; on cluster local set nodes=1")


def _require_unused(journal: Journal, submission: Submission, profile: Profile) -> None:
    """Raise `SlurmError` where earlier results must stay: jobs still use them, or Slurm would refuse the new ones."""
    used = [(status.name, status.job) for status in submission.live]
    used += [(group.stages[0].name, job) for group in submission.groups for job in group.running]
    for name, job in used:
        raise SlurmError(
            f"{name!r} still waits or runs (job {job}): before starting it afresh, wait, or "
            f"python -m slurm cancel {journal.run}"
        )
    if profile.cluster == "slurm":
        for group in {group.settings.model_dump_json(): group for group in submission.groups}.values():
            with _outside_of_jobs():
                error = sbatch_error(sbatch_text(journal.jobs, group.settings, group.title, ""))
            if error is not None:
                raise group.refusal(error)


def _planned(journal: Journal, stages: list[Stage], profile: Profile, fresh: bool, strict: bool = True) -> Submission:
    statuses = read_status(journal, strict=strict)
    states = {name: status.state for name, status in statuses.items()}
    given = {stage.name for stage in stages}
    finished, live, replaced = [], [], []
    new: dict[str, Stage] = {}
    running: dict[str, str] = {}
    for stage in stages:
        for need in stage.needs:
            if need not in given and states.get(need) not in ("finished", *LIVE):
                raise SlurmError(f"stage {stage.name!r} waits for {need!r}, which is not given, done or running")
        state, needs_new = states.get(stage.name, "not submitted"), not new.keys().isdisjoint(stage.needs)
        if state in LIVE and not needs_new:
            live.append(statuses[stage.name])
        elif state == "finished" and not fresh and not needs_new:
            finished.append(stage.name)
        else:
            new[stage.name] = stage
            if state == "running":
                running[stage.name] = statuses[stage.name].job
            elif state in LIVE:
                replaced.append(statuses[stage.name])
    pending = new.keys() | {name for name, state in states.items() if state in LIVE}
    groups: dict[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], list[Stage]] = {}
    settings = {stage.kind: profile.settings(stage.kind) for stage in stages}
    for stage in new.values():
        ok = tuple(need for need in stage.after if need in pending)
        ended = tuple(need for need in stage.after_any if need in pending)
        before = (running[stage.name],) if stage.name in running else ()
        groups.setdefault((stage.kind, ok, ended, before), []).append(stage)
    planned = [JobGroup(tuple(group), settings[kind], *waits) for (kind, *waits), group in groups.items()]
    return Submission(planned, finished, live, replaced)


def _print_kept(submission: Submission) -> None:
    for name in submission.finished:
        print(f"{one_line(name)}: already finished")
    for status in submission.live:
        print(f"{one_line(status.name)}: already {status.state}, job {status.job}")


def _submit_to_slurm(journal: Journal, submission: Submission) -> None:
    jobs = {status.name: status.job for status in submission.live}
    submitted: list[str] = []
    scancel([status.job for status in submission.replaced])
    try:
        for group in submission.groups:
            ids = _submit_group(journal, group, group.dependency(jobs))
            submitted += ids
            for stage, job in zip(group.stages, ids, strict=True):
                jobs[stage.name] = job
                journal.append(Submitted(stage=stage.name, job=job, cluster="slurm"))
                print(f"{one_line(stage.name)}: job {job}")
    except BaseException:
        with contextlib.suppress(SlurmError):  # the first error is the one to report
            scancel(submitted)
        raise


def _submit_group(journal: Journal, group: JobGroup, dependency: str) -> list[str]:
    """Job ids of its stages."""
    executor = slurm_executor(journal.jobs, group.settings, group.title, dependency)
    try:
        with _outside_of_jobs(), writing(journal.jobs), umask(PRIVATE) as usual:
            jobs = [StageJob.of(journal.run, stage, group.settings, usual) for stage in group.stages]
            return [job.job_id for job in executor.submit_array(jobs)]
    except (FailedJobError, FailedSubmissionError) as error:
        reasons = re.findall(r"error: (.+)", str(error)) or str(error).split("\n")
        raise group.refusal(reasons[-1].strip()) from None


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """A job submitted from inside a job would inherit its settings."""
    conf = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
    with clean_env():
        os.environ.update(conf)
        yield


def _show(journal: Journal, submission: Submission, profile: Profile) -> None:
    """The graph, and for Slurm the text of every job, without the values of its variables."""
    _print_kept(submission)
    for group in submission.groups:
        settings = group.settings
        size = f"{settings.nodes} node(s) x {settings.tasks} process(es), {settings.gpus} GPU(s) per node"
        waits = [*group.ok, *(f"{name} (any end)" for name in group.ended)]
        after = f"  after: {', '.join(waits)}" if waits else ""
        for stage in group.stages:
            print(one_line(f"{stage.name}  [{stage.kind}: {size}]{after}"))
    if profile.cluster != "slurm":
        print(f"cluster {profile.cluster}: these run on this machine; --profile slurm shows jobs for Slurm")
        return
    jobs = {status.name: status.job for status in submission.live}
    for group in submission.groups:
        settings = group.settings.model_copy(update={"environment": dict.fromkeys(group.settings.environment, "***")})
        print(f"\n==> {one_line(', '.join(stage.name for stage in group.stages))}")
        print(sbatch_text(journal.jobs, settings, group.title, group.dependency(jobs), len(group.stages)).rstrip())
