"""The entry that all commands share: what they accept, what they print, and the code they exit with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from tyro.conf import Positional, arg

from imagefolder.cli import COMMAND, VERBATIM, command_line, subcommands, typed_command
from imagefolder.errors import InputError
from reproductions.__main__ import COMMANDS
from reproductions.__main__ import main as imagefolder_command

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Options:
    """Do some work."""

    data: Path
    """folder of images, with one
    folder per class"""
    rows: Annotated[tuple[str, ...], arg(metavar="ROW ...")] = ()
    """rows to run (default: all)"""
    set: Annotated[tuple[str, ...], VERBATIM] = ()
    """values of the profile"""
    seeds: tuple[int, ...] = ()
    """several seeds"""
    rates: tuple[float, ...] = (1.0, 0.5)
    """learning rates"""
    name: str | None = None
    """name of the run"""
    format: Literal["png", "npz"] | None = None
    """kind of file"""
    number: int = 3
    """of images"""
    fresh: bool = False
    """start again"""


@dataclass
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call an entry point with arguments."""

    def call(entry: Callable[[], object], *arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        with pytest.raises(SystemExit) as end:
            entry()
        return Ended(end.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def parse(run: Run) -> Run:
    """Call a command of `Options`, which prints them."""

    def show(options: Options) -> None:
        print(options)

    return lambda *arguments: run(lambda: command_line(show, prog="script.py"), *arguments)


@pytest.mark.parametrize("several", [("0", "1"), ("0,1",), ("0,", "1")])
def test_several_values_are_separated_by_spaces_or_commas(parse: Run, several: tuple[str, ...]) -> None:
    ended = parse("--data", "x", "--seeds", *several, "--rows", "a,b")
    assert ended.code == 0
    assert ended.out.strip() == repr(Options(Path("x"), ("a", "b"), seeds=(0, 1)))


def test_values_that_may_contain_commas_are_kept(parse: Run) -> None:
    ended = parse("--data", "x,y", "--set", "nodes=a,b", "c=d", "--name", "e,f")
    assert ended.out.strip() == repr(Options(Path("x,y"), set=("nodes=a,b", "c=d"), name="e,f"))


def test_every_kind_of_option(parse: Run) -> None:
    arguments = "--data=x --seeds -1 2 --rates 0.1 --format npz --number 5 --fresh"
    expected = Options(Path("x"), seeds=(-1, 2), rates=(0.1,), format="npz", number=5, fresh=True)
    assert parse(*arguments.split()).out.strip() == repr(expected)


def test_help_describes_every_option_once(parse: Run) -> None:
    ended = parse("--help")
    text = " ".join(ended.out.replace("│", " ").split())
    assert ended.code == 0
    for part in (
        "usage: script.py",
        "Do some work.",
        "--data PATH folder of images, with one folder per class (required)",
        "--rows ROW ... rows to run (default: all)",
        "--seeds INT ... several seeds",
        "--rates FLOAT ... learning rates (default: 1.0 0.5)",
        "--name STR name of the run",
        "--format {png,npz} kind of file",
        "--number INT of images (default: 3)",
    ):
        assert part in text
    for clutter in ("None", "default: )", "(default: all) (default", "default: False"):
        assert clutter not in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["--data"]),
        (("--data", "x", "--seeds", "0,q"), ["--seeds", "'q' is not an integer"]),
        (("--data", "x", "--rates", "fast"), ["--rates", "'fast' is not a number"]),
        (("--data", "x", "--number", "1.5"), ["--number", "'1.5' is not an integer"]),
        (("--data", "x", "--format", "gif"), ["--format", "gif", "png"]),
        (("--data", "x", "--number"), ["--number"]),
        (("--data", "x", "--numbers", "1"), ["--numbers"]),
        (("--data", "x", "more"), ["more"]),
        (("--data", "x", "\x1b[31m"), [r"\x1b[31m"]),
    ],
)
def test_bad_arguments_are_one_line_that_points_to_the_help(
    parse: Run, arguments: tuple[str, ...], parts: list[str]
) -> None:
    ended = parse(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("(see script.py --help)\n")
    assert ended.err.count("\n") == 1
    assert all(part in ended.err for part in parts)


def fail_with(error: BaseException) -> Callable[[], None]:
    def entry() -> None:
        def work() -> None:
            raise error

        command_line(work, prog="script.py")

    return entry


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\nlines"), 2, "error: two lines"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: [Errno 2] No such file: 'x'"),
        (MemoryError(), 2, "error: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues"),
    ],
)
def test_errors_are_one_line_and_a_code(run: Run, error: BaseException, code: int, line: str) -> None:
    ended = run(fail_with(error))
    assert ended.code == code
    assert ended.err.startswith(line)
    assert ended.err.count("\n") == 1


def test_faults_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(ZeroDivisionError):
        fail_with(ZeroDivisionError())()


def test_sigterm_ends_like_an_interrupt(run: Run) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            print("tidied up")
            raise

    before = signal.getsignal(signal.SIGTERM)
    ended = run(lambda: command_line(work, prog="script.py"))
    assert (ended.code, ended.out) == (143, "tidied up\n")
    assert ended.err == "terminated; the same command continues\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_forked_workers_of_a_command_die_of_sigterm(run: Run) -> None:
    def work() -> int:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(writer, b"ready")  # Python forgets signals that arrive while it forks
            time.sleep(60)
            os._exit(0)
        os.read(reader, 5)
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) + signal.SIGTERM

    assert run(lambda: command_line(work, prog="script.py")).code == 0


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    code = "import imagefolder.cli as c; c.command_line(lambda: print('x\\n' * 100_000), prog='script.py')"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def add(file: Annotated[Path, Positional], *, times: int = 1) -> int:
    """Add a file.

    Args:
        file: what to add
        times: how often
    """
    print(file, times)
    return 7


def several() -> None:
    subcommands({"add": add, "do-more": lambda: print("more")}, prog="python -m some", description="Some commands.")


def test_subcommands_have_their_own_arguments(run: Run) -> None:
    ended = run(several, "add", "x", "--times", "2")
    assert (ended.code, ended.out) == (7, "x 2\n")
    assert run(several, "do-more").out == "more\n"
    usage = run(several, "add", "--help").out.splitlines()[0]
    assert usage.startswith("usage: python -m some add [-h]")
    assert {"FILE", "[--times", "INT]"} <= set(usage.split())
    listed = run(several, "--help")
    assert listed.code == 0
    assert "add      Add a file." in listed.out
    for arguments, problem in (((), "no command"), (("ad",), "unknown command 'ad'"), (("add", "x", "y"), "y")):
        ended = run(several, *arguments)
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert problem in ended.err


@pytest.mark.parametrize(
    ("argv", "typed"),
    [
        (["imagefolder table2", "--rows", "var"], ["imagefolder", "table2", "--rows", "var"]),
        (["reproductions/table2.py", "--rows", "var"], ["python", "reproductions/table2.py", "--rows", "var"]),
    ],
)
def test_a_command_knows_how_it_was_typed(monkeypatch: pytest.MonkeyPatch, argv: list[str], typed: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert typed_command() == typed


def test_the_imagefolder_command_lists_all_commands(run: Run) -> None:
    ended = run(imagefolder_command, "--help")
    assert ended.code == 0
    assert all(f"\n  {name} " in ended.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help_under_its_name(run: Run, name: str) -> None:
    ended = run(imagefolder_command, name, "--help")
    assert ended.code == 0, ended.err
    assert f"usage: {COMMAND} {name} " in ended.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_unknown_options_in_one_line(run: Run, name: str) -> None:
    ended = run(imagefolder_command, name, "--no-such-option")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert f"{COMMAND} {name}" in ended.err
