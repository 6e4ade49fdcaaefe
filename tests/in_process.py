"""Stages and commands of `slurm` in this process, without the seconds that new processes need to start."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from pathlib import Path
from unittest.mock import patch

import pytest
from submitit.core.utils import environment_variables

from slurm.__main__ import main
from slurm.events import Submitted
from slurm.files import PRIVATE, umask
from slurm.jobs import USER_SIGNAL, StageJob
from slurm.journal import Journal
from slurm.profile import Profile
from slurm.stage import Stage


def run_in_process(journal: Journal, stages: list[Stage], live: list[str], profile: Profile) -> dict[str, str]:
    """Takes the place of `slurm.launch.run_local`: one stage after the other."""
    failed: dict[str, str] = {}
    handlers = {number: signal.getsignal(number) for number in (USER_SIGNAL, signal.SIGTERM)}
    for stage in stages:
        blocker = next((need for need in stage.after if need in failed), None)
        if blocker is not None:
            failed[stage.name] = f"{blocker} failed: {failed[blocker]}"
            continue
        settings = profile.settings(stage.kind).model_copy(update={"nodes": 1, "tasks_per_node": 1})
        job = str(time.time_ns() // 1000 % 10**9)
        variables = settings.environment | {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": job}
        with umask(PRIVATE) as usual, journal.log(job).open("w") as log:
            journal.append(Submitted(stage=stage.name, job=job, cluster="local"))
            with environment_variables(**variables), contextlib.redirect_stdout(log):
                try:
                    StageJob.of(journal.run, stage, settings, usual)()
                except Exception:
                    traceback.print_exc(file=log)
                finally:
                    for number, handler in handlers.items():
                        signal.signal(number, handler)
        outcome = journal.outcome(stage.name, job)
        assert outcome is not None
        if not outcome.finished:
            failed[stage.name] = outcome.reason
    return failed


def slurm_command(*words: str | Path) -> int:
    """Exit code of `python -m slurm WORDS`."""
    with patch.object(sys, "argv", ["slurm", *map(str, words)]), pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code
