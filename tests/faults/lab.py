"""A miniature of table 2 in forked processes that tests can kill, starve and race, and a look at its results.

A run takes a second or two, as torch is imported once, before the fork. Stages run in the forked process itself
(`InTurn`), or in real worker processes, forked instead of spawned.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from in_turn import InTurn
from PIL import Image

import reproductions.workers
from imagefolder import progress
from imagefolder.config import SamplingConfig
from imagefolder.data.digits import digits
from imagefolder.data.images import ArrayImages, DataSplits
from imagefolder.distributed import is_distributed
from imagefolder.errors import InputError
from leaderboard.report import templates
from reproductions import alone, command, scales, source, table2, timing_stage
from reproductions.options import Options
from reproductions.together import Together

TOKENIZER_STEPS, GENERATOR_STEPS = 16, 12
for _name in templates().list_templates():
    templates().get_template(_name)  # compiled once, before any fork


@dataclass(frozen=True)
class Run:
    """The end of a run: its exit code (71: a traceback; negative: a signal), and all that it printed."""

    code: int
    text: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.startswith("error:")]

    @property
    def is_traceback(self) -> bool:
        return self.code == 71 or "Traceback" in self.text


def shrink() -> None:
    """Make scales mini and small (for folders of images) tiny, in this process."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    source.read_splits.cache_clear()
    mini = scales.SCALES["mini"]
    tiny = replace(
        mini,
        tokenizer_training=replace(mini.tokenizer_training, steps=TOKENIZER_STEPS, batch_size=8, checkpoint_every=4),
        generator_training=replace(mini.generator_training, steps=GENERATOR_STEPS, batch_size=8, checkpoint_every=4),
        sampling=SamplingConfig(guidance=1.0, top_k=0, top_p=0.95, batch_size=20),
        samples=40,
        proxy_steps=8,
    )
    scales.SCALES["mini"] = tiny
    scales.SCALES["small"] = replace(tiny, name="small")
    source.read_builtin = lambda name, image_size: few_digits(image_size)
    timing_stage.LONGEST, alone.LOOK_SECONDS = 0.0, 0.1  # one round


def few_digits(image_size: int) -> DataSplits:
    """The first digits of both splits."""
    whole = digits(image_size)

    def first(images: Any, number: int) -> ArrayImages:
        return ArrayImages(images.images[:number].clone(), images.labels[:number].clone())

    return replace(whole, train=first(whole.train, 160), test=first(whole.test, 40))


@dataclass
class Process:
    """A forked process, which leads its process group; its output goes to `log`."""

    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code (negative: a signal), or None while it runs."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def wait(self, seconds: float = 90.0) -> Run:
        """Wait for its end; kill it if it takes too long (code -9)."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill_group()
                os.waitpid(self.pid, 0)
                return Run(-9, self.log.read_text(errors="replace") + "\ntook too long")
            time.sleep(0.005)
        return Run(self.code, self.log.read_text(errors="replace"))

    def kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def members(self) -> list[int]:
        """The running processes of its group, including itself."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found


def fork(act: Callable[[], int], log: Path) -> Process:
    """Run `act` in a forked process; its return value is the exit code."""
    pid = os.fork()
    if pid:
        return Process(pid, log)
    code = 71
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), errors="replace", line_buffering=True)
            for number in (1, 2)
        )
        progress.console.file = sys.stdout
        code = act()
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end_with_parent() -> None:
    """Replaces the one in `workers`, which relies on spawned processes: forked ones hold each other's pipes open."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)
    os._exit(1)


def start(
    output: Path, *rows: str, hook: Callable[[], None] | None = None, workers: bool = False, **options: Any
) -> Process:
    """Start rows of table 2 as its script does; the new process first calls `hook`."""

    def act() -> int:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        shrink()
        if workers:
            get_context = multiprocessing.get_context
            multiprocessing.get_context = lambda method=None: get_context("fork")
            reproductions.workers._end_with_parent = end_with_parent
        else:
            command.way_here = lambda tasks, threads: Together() if is_distributed() else InTurn()
        sys.argv = ["table2.py"]
        if hook is not None:
            hook()
        try:
            return command.run_table(table2.TABLE, Options(rows=rows, output=output, **options))
        except (InputError, OSError, MemoryError) as error:  # as `imagefolder.cli.command_line`
            print(f"error: {error}", file=sys.stderr)
            return 2

    output.parent.mkdir(parents=True, exist_ok=True)
    return fork(act, output.parent / f"{output.name}.log-{time.monotonic_ns()}")


def run(output: Path, *rows: str, **options: Any) -> Run:
    """Run rows of table 2 to their end; arguments as for `start`."""
    return start(output, *rows, **options).wait()


def results(output: Path) -> dict[str, Any]:
    """All records by file name, without the parts that differ between identical runs."""
    found = {}
    for path in sorted((output / "records").glob("[!.]*.json")):
        record = json.loads(path.read_text())
        for part in ("cost", "run"):
            record.pop(part, None)
        found[path.name] = record
    return found


def leftovers(output: Path) -> list[str]:
    """Files that no finished run leaves behind."""
    odd = re.compile(r"\.tmp$|\.earlier$|^state.*\.pt$|^best\.pt$|^unfinished\.json$|^done-.*\.json$|^\.writable")
    return [str(path.relative_to(output)) for path in output.rglob("*") if odd.search(path.name)]


def image_folder(folder: Path, draw: int = 0, classes: int = 2, each: int = 30) -> Path:
    """Class folders of PNG files of noise; another `draw` gives other pixels in files of the same size."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = np.random.default_rng([draw, label, i]).integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{i}.png", compress_level=0)
    return folder


def at_step(number: int, task: str, act: Callable[[Any], None], after: bool = False) -> Callable[[], None]:
    """A hook that calls `act(task)` before or `after` a step of training; `task` is "Tokenizer" or "Generator"."""

    def install() -> None:
        from imagefolder.training import loop

        step = loop._Runner.step

        def acting(self: Any, current: int) -> Any:
            here = current == number and task in type(self.task).__name__
            if here and not after:
                act(self.task)
            losses = step(self, current)
            if here and after:
                act(self.task)
            return losses

        loop._Runner.step = acting

    return install


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted_encoding() -> None:
    """A hook: Ctrl-C while the token cache encodes its second batch of images."""
    from imagefolder.training import token_cache as tokens

    class Interrupting:
        def __init__(self, images: Any) -> None:
            self.images = images

        def __getattr__(self, name: str) -> Any:
            return getattr(self.images, name)

        def __len__(self) -> int:
            return len(self.images)

        def __getitems__(self, keys: list[Any]) -> Any:
            if (0, 0) not in keys:
                raise KeyboardInterrupt
            return self.images.__getitems__(keys)

    build = tokens._build

    def interrupted(tokenizer: Any, images: Any, *others: Any, **options: Any) -> Any:
        return build(tokenizer, Interrupting(images), *others, **options)

    tokens._build = interrupted
