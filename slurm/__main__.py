"""`python -m slurm`: the status and logs of a run's jobs, cancelling them, and resubmitting what failed."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro

from imagefolder.cli import VERBATIM, subcommands
from imagefolder.errors import one_line
from slurm.stage import SlurmError

if TYPE_CHECKING:
    from slurm.journal import Journal
    from slurm.status import StageStatus

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]", help="folder of the run")]
Stages = Annotated[tuple[str, ...], VERBATIM, tyro.conf.arg(metavar="STAGE ...")]


def main() -> NoReturn:
    """Exits with 0, 1 (a stage failed), or the codes of `imagefolder.cli`."""
    commands = {"status": status, "cancel": cancel, "logs": logs, "resubmit": resubmit}
    subcommands(commands, prog="python -m slurm", description="The jobs of a submitted run.")


def status(run: Run = Path("runs")) -> int:
    """The graph with states, nodes and progress; exit code 1 if a stage failed."""
    from slurm.journal import Journal
    from slurm.status import UNSUCCESSFUL, read_status, table

    journal = Journal(run)
    statuses = read_status(journal, strict=False)
    print(table(journal, statuses))
    _complain(journal)
    return int(any(status.state in UNSUCCESSFUL for status in statuses.values()))


def cancel(run: Run = Path("runs"), *, stages: Stages = ()) -> None:
    """Cancel what waits or runs; trainings save their states first.

    Args:
        stages: only these: name, job id, or a part of the name that is unique
    """
    from slurm.journal import Journal
    from slurm.states import scancel
    from slurm.status import LIVE, live_strays, read_status

    journal = Journal(run)
    statuses = read_status(journal)
    if stages:
        statuses = {status.name: status for status in (_find(statuses, text, journal) for text in stages)}
    live = [status for status in statuses.values() if status.state in LIVE]
    strays = {} if stages else live_strays(journal)
    jobs = [(status.job, status.cluster) for status in live] + list(strays.items())
    scancel([job for job, cluster in jobs if cluster == "slurm"])
    holder = journal.holder()
    if holder is not None and holder.host != platform.node():
        raise SlurmError(f"the run belongs to process {holder.pid} on {holder.host}: cancel it there")
    if holder is not None and not stages:
        processes = [holder.pid]  # which ends its stages
    else:
        processes = [int(job) for job, cluster in jobs if cluster == "local"]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    for stage in live:
        print(f"{one_line(stage.name)}: cancelled, job {stage.job}")
    for job in strays:
        print(f"a stage that the journal does not name: cancelled, job {job}")
    if not jobs:
        print("nothing waits or runs")


def logs(
    stage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STAGE")],
    run: Run = Path("runs"),
    *,
    follow: bool = False,
) -> None:
    """The output of a stage's job.

    Args:
        stage: name, job id, or a part of the name that is unique
        follow: continue until the job ends
    """
    from slurm.files import opened
    from slurm.journal import Journal
    from slurm.status import LIVE, read_status

    journal = Journal(run)
    found = _find(read_status(journal, strict=False), stage, journal)
    if not found.job:
        raise SlurmError(f"stage {found.name!r} has not been submitted: {journal.folder}/jobs.jsonl names no job of it")
    path, shown = journal.log(found.job), 0
    while True:
        live = found.state in LIVE
        with contextlib.suppress(FileNotFoundError), os.fdopen(opened(path, os.O_RDONLY), errors="replace") as file:
            file.seek(shown)
            sys.stdout.write(file.read())
            sys.stdout.flush()
            shown = file.tell()
        if not follow or not live:
            break
        time.sleep(1)
        found = read_status(journal)[found.name]
    if shown == 0:
        print(f"{path}: empty so far ({': '.join(filter(None, (found.state, found.reason)))})", file=sys.stderr)
    for other in sorted(journal.jobs.glob(f"{found.job}_[1-9]*_log.out")):
        print(f"another process of this stage: {other}", file=sys.stderr)


def resubmit(
    run: Run = Path("runs"),
    *,
    profile: str | None = None,
    set: Annotated[tuple[str, ...], VERBATIM, tyro.conf.arg(metavar="KEY=VALUE ...")] = (),
    dry_run: bool = False,
) -> int:
    """Submit what failed, and what depends on it.

    Args:
        profile: another profile (default: that of the submission)
        set: values of the profile, e.g. training.memory=96G
        dry_run: only show what would be submitted
    """
    from slurm import launch
    from slurm.journal import Journal

    _complain(Journal(run))
    return int(bool(launch.resubmit(run, profile=profile, overrides=set, dry_run=dry_run)))


def _complain(journal: Journal) -> None:
    for line in journal.complaints():
        print(f"note: {one_line(line)}", file=sys.stderr)


def _find(statuses: dict[str, StageStatus], text: str, journal: Journal) -> StageStatus:
    """The stage with that name or job, or the only one whose name contains the text."""
    named = [status for status in statuses.values() if text in (status.name, status.job)]
    named = named or [status for status in statuses.values() if text and text in status.name]
    if len(named) == 1:
        return named[0]
    if named:
        raise SlurmError(f"{text!r} can be any of: {', '.join(status.name for status in named)}; give more of the name")
    raise SlurmError(f"{journal.run} has no stage {text!r}; it has: {', '.join(statuses) or 'none'}")


if __name__ == "__main__":
    main()
