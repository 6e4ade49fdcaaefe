"""`python -m slurm`: how the jobs of a run stand, what they print, ending them, and doing again what failed."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
from pathlib import Path

from slurm.files import opened
from slurm.journal import Journal
from slurm.launch import resubmit
from slurm.stage import SlurmError, one_line
from slurm.states import scancel
from slurm.status import LIVE, WRONG, StageStatus, live_strays, read_status, table


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns 0, 1 (a stage failed), 2 (bad input) or 130 (interrupted)."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough; nothing more can be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SlurmError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm", description="The jobs of a submitted run.")
    commands = parser.add_subparsers(required=True)
    run = {"type": Path, "nargs": "?", "default": Path("runs"), "help": "folder of the run (default: runs)"}

    status = commands.add_parser("status", help="the graph with state, node, progress; exit code 1 if a stage failed")
    status.add_argument("run", **run)
    status.set_defaults(command=_status)

    cancel = commands.add_parser("cancel", help="end what waits or runs")
    cancel.add_argument("run", **run)
    stage = "name, job number, or a part of the name that only one has"
    cancel.add_argument("--stages", nargs="+", metavar="STAGE", help=f"these only; each: {stage}")
    cancel.set_defaults(command=_cancel)

    logs = commands.add_parser("logs", help="what a stage's job has printed")
    logs.add_argument("stage", help=stage)
    logs.add_argument("run", **run)
    logs.add_argument("--follow", action="store_true", help="go on until the job ends")
    logs.set_defaults(command=_logs)

    again = commands.add_parser("resubmit", help="submit what failed, and what depends on it")
    again.add_argument("run", **run)
    again.add_argument("--profile", help="another profile (default: that of the submission)")
    again.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="e.g. training.memory=96G")
    again.add_argument("--dry-run", action="store_true", help="only show what would be submitted")
    again.set_defaults(command=_resubmit)
    return parser


def _status(options: argparse.Namespace) -> int:
    journal = Journal(options.run)
    statuses = read_status(journal, strict=False)
    print(table(journal, statuses))
    _complain(journal)
    return int(any(status.state in WRONG for status in statuses.values()))


def _cancel(options: argparse.Namespace) -> int:
    journal = Journal(options.run)
    statuses = read_status(journal)
    if options.stages:
        statuses = {status.name: status for status in (_find(statuses, text, journal) for text in options.stages)}
    live = [status for status in statuses.values() if status.state in LIVE]
    strays = {} if options.stages else live_strays(journal)
    slurm = [status.job for status in live if status.cluster == "slurm"]
    slurm += [job for job, cluster in strays.items() if cluster == "slurm"]
    scancel(slurm)
    holder = journal.holder()
    if holder is not None and holder[1] != platform.node():
        raise SlurmError(f"the run belongs to process {holder[0]} on {holder[1]}: cancel it there")
    if holder is not None and not options.stages:
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder[0], signal.SIGTERM)  # which ends its stages
    else:
        local = [status.job for status in live if status.cluster == "local"]
        for job in [*local, *(job for job, cluster in strays.items() if cluster == "local")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)
    for status in live:
        print(f"{one_line(status.name)}: cancelled, job {status.job}")
    for job in strays:
        print(f"a stage that the journal does not name: cancelled, job {job}")
    if not live and not strays:
        print("nothing waits or runs")
    return 0


def _logs(options: argparse.Namespace) -> int:
    journal = Journal(options.run)
    status = _find(read_status(journal, strict=False), options.stage, journal)
    if not status.job:
        raise SlurmError(
            f"stage {status.name!r} has not been submitted: {journal.folder}/jobs.jsonl names no job of it"
        )
    path, shown = journal.log(status.job), 0
    while True:
        live = status.state in LIVE
        with contextlib.suppress(FileNotFoundError), os.fdopen(opened(path, os.O_RDONLY), errors="replace") as file:
            file.seek(shown)
            sys.stdout.write(file.read())
            sys.stdout.flush()
            shown = file.tell()
        if not options.follow or not live:
            break
        time.sleep(1)
        status = read_status(journal)[status.name]
    if shown == 0:
        print(f"{path}: nothing yet ({status.state}{': ' if status.reason else ''}{status.reason})", file=sys.stderr)
    for other in sorted(journal.jobs.glob(f"{status.job}_[1-9]*_log.out")):
        print(f"another process of this stage: {other}", file=sys.stderr)
    return 0


def _resubmit(options: argparse.Namespace) -> int:
    _complain(Journal(options.run))
    return int(bool(resubmit(options.run, options.profile, options.set, options.dry_run)))


def _complain(journal: Journal) -> None:
    for line in journal.complaints():
        print(f"note: {one_line(line)}", file=sys.stderr)


def _find(statuses: dict[str, StageStatus], text: str, journal: Journal) -> StageStatus:
    """The stage of that name or job, or the one whose name has the text in it."""
    named = [status for status in statuses.values() if text in (status.name, status.job)]
    named = named or [status for status in statuses.values() if text and text in status.name]
    if len(named) == 1:
        return named[0]
    if named:
        raise SlurmError(f"{text!r} can be any of: {', '.join(status.name for status in named)}; give more of the name")
    raise SlurmError(f"{journal.run} has no stage {text!r}; it has: {', '.join(statuses) or 'none'}")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a log may hold what the terminal cannot show
    sys.exit(main())
