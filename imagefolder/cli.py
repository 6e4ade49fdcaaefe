"""The guarded entry of every command: one parser, one set of errors and exit codes.

It imports nothing heavy: a command parses its arguments first and imports afterwards what the work needs.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from imagefolder.errors import InputError, one_line

COMMAND = "imagefolder"
"""The console command; it runs the others with `sys.argv[0]` set to this, or to `imagefolder NAME`."""

VERBATIM = object()
"""Annotation of an option whose values may contain commas: `Annotated[tuple[str, ...], VERBATIM]`."""


@dataclasses.dataclass(frozen=True)
class Bare:
    """Annotation of an option that may be given without its value: `Annotated[int | None, Bare(8000)]`."""

    value: int
    """what the option then has"""


_FRAME = re.compile("[╭╮╰╯│─┃━]")
_RULE = re.compile("^│? ?─{3,}", re.MULTILINE)


class Terminated(KeyboardInterrupt):
    """SIGTERM: the command ends the way it does after Ctrl-C, with another exit code."""


def command_line(main: Callable[..., int | None], *, prog: str, description: str | None = None) -> NoReturn:
    """Parse `sys.argv` for the parameters of `main`, call it, and exit.

    Options are in kebab case. One that takes several values (a tuple) accepts `--seeds 0 1` and `--seeds 0,1`.

    Args:
        main: a function of keyword parameters, or of one dataclass; its docstring, or the strings below the fields,
            are the help.
        prog: name of the command in help and errors, unless the `imagefolder` command runs it.
        description: first lines of the help; by default the docstring.

    Exit codes: main's (None: 0); 1 if the reader of a pipe is gone; 2 after one line "error: ..." on stderr
    (`InputError`, `OSError`, `MemoryError`, bad arguments); 130 after Ctrl-C and 143 after SIGTERM, with one line that
    the same command continues.
    """
    with guarded():
        sys.exit(_parse(main, _program(prog), description)() or 0)


def subcommands(mains: dict[str, Callable[..., int | None]], *, prog: str, description: str | None = None) -> NoReturn:
    """The same for several commands by name: the first argument chooses one, the others are its own."""
    with guarded():
        summaries = {name: inspect.getdoc(_documented(main)) or "" for name, main in mains.items()}
        name = choose(summaries, prog=_program(prog), description=description)
        sys.exit(_parse(mains[name], f"{_program(prog)} {name}", None)() or 0)


def choose(summaries: dict[str, str], *, prog: str, description: str | None = None) -> str:
    """Take the name of a subcommand out of `sys.argv`; print the list and exit if it is `-h` or `--help`.

    Args:
        summaries: one line or docstring of each command; its first line is shown.

    Raises:
        InputError: no name, or an unknown one.
    """
    if len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help"):
        width = max(map(len, summaries))
        print(f"usage: {prog} [-h] COMMAND ...\n")
        if description:
            print(f"{textwrap.fill(description.strip(), 100)}\n")
        for name, summary in summaries.items():
            print(f"  {name:{width}}  {next(iter(summary.strip().splitlines()), '')}")
        print(f"\nOptions of a command: {prog} COMMAND --help")
        sys.exit(0)
    if len(sys.argv) < 2 or sys.argv[1] not in summaries:
        problem = f"unknown command {sys.argv[1]!r}" if len(sys.argv) > 1 else "no command"
        raise InputError(f"{problem}; choose one of {', '.join(summaries)} (see {prog} --help)")
    return sys.argv.pop(1)


def typed_command() -> list[str]:
    """The command line of this process, in words that run it again."""
    program = sys.argv[0].split(" ")
    return [*program, *sys.argv[1:]] if program[0] == COMMAND else ["python", *sys.argv]


def _program(prog: str) -> str:
    return sys.argv[0] if sys.argv[0].split(" ")[0] == COMMAND else prog


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Turn errors and signals into a line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold what the terminal cannot show
    owner = os.getpid()

    def terminate(number: int, _: object) -> None:
        if os.getpid() != owner:  # a forked worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; nothing more can be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError) as error:
        _fail(f"error: {one_line(error)}", 2)
    except MemoryError:
        _fail("error: out of memory; the same command continues where there is more", 2)
    except Terminated:
        _fail("terminated; the same command continues", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", 128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _fail(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)


def _parse(main: Callable[..., int | None], prog: str, description: str | None) -> Callable[[], int | None]:
    """`main` with the arguments of the command line. Prints the help and exits if that is asked for."""
    options = _documented(main)
    values: dict[str, Any] = {}

    def record(**parsed: Any) -> None:
        values.update(parsed)

    hints = get_type_hints(options, include_extras=True)
    texts = _field_texts(options) if isinstance(options, type) else {}
    parameters = inspect.signature(options).parameters
    record.__annotations__ = {
        name: _option(name, hints[name], parameter.default, texts.get(name)) for name, parameter in parameters.items()
    }
    record.__signature__ = inspect.Signature(list(parameters.values()))  # pyright: ignore[reportFunctionMemberAccess]
    record.__doc__ = inspect.getdoc(options)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            tyro.cli(record, prog=prog, description=description)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise InputError(f"{_first_part(shown.getvalue())} (see {prog} --help)") from None
    if options is main:
        return lambda: main(**values)
    return lambda: main(options(**values))


def _documented(main: Callable[..., Any]) -> Callable[..., Any]:
    """What the parameters are read from: the dataclass that is the only parameter of `main`, or `main` itself."""
    hints = {name: hint for name, hint in get_type_hints(main).items() if name != "return"}
    only = next(iter(hints.values())) if len(hints) == 1 else None
    return only if isinstance(only, type) and dataclasses.is_dataclass(only) else main


def _field_texts(kind: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, and of those it derives from."""
    texts: dict[str, str] = {}
    for part in reversed(kind.__mro__[:-1]):  # all but object
        definition = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        for field, below in itertools.pairwise(definition.body if isinstance(definition, ast.ClassDef) else []):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def _option(name: str, hint: Any, default: Any, text: str | None) -> Any:
    """The annotation by which tyro parses and describes a parameter the way all commands do."""
    plain, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    shown = "" if default is None or default is False or default == () else None  # the help explains these in words
    named = None
    if tyro.conf.Positional in extras and get_origin(plain) is not Literal:
        named = name.upper() if default is inspect.Parameter.empty else f"[{name.upper()}]"
    extras = [tyro.conf.arg(help=text, help_behavior_hint=shown, metavar=named), *extras]
    members = get_args(plain)
    if get_origin(plain) is tuple and members[1:] == (...,):
        splits = members[0] is not Path and VERBATIM not in extras and tyro.conf.Positional not in extras
        extras.insert(0, _several(members[0], splits))
    elif get_origin(plain) in (Union, UnionType) and NoneType in members and len(members) == 2:
        bare = next((extra for extra in extras if isinstance(extra, Bare)), None)
        extras.insert(0, _one(next(member for member in members if member is not NoneType), bare))
    elif plain in (int, float):
        extras.insert(0, _one(plain))
    return Annotated[(plain, *extras)]


def _one(kind: Any, bare: Bare | None = None) -> PrimitiveConstructorSpec[Any]:
    """How one value is read and shown; `bare`: it may be left out."""
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else None

    def read(given: Sequence[str]) -> Any:
        if bare is not None and len(given) > 1:
            raise ValueError(f"one value, not {len(given)}")
        return _convert(kind, given[0]) if given or bare is None else bare.value

    return PrimitiveConstructorSpec(
        nargs=1 if bare is None else "*",
        metavar=_metavar(kind) if bare is None else f"[{_metavar(kind)}]",
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
        choices=choices,
    )


def _several(kind: Any, splits: bool) -> PrimitiveConstructorSpec[Any]:
    """How the values of a tuple are read and shown; `splits`: commas separate them as spaces do."""

    def read(given: Sequence[str]) -> tuple[Any, ...]:
        parts = [part for text in given for part in text.split(",") if part] if splits else given
        return tuple(_convert(kind, part) for part in parts)

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{_metavar(kind)} ...",
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: list(map(str, value)),
    )


def _metavar(kind: Any) -> str:
    return f"{{{','.join(map(str, get_args(kind)))}}}" if get_origin(kind) is Literal else kind.__name__.upper()


def _convert(kind: Any, text: str) -> Any:
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if str(choice) == text:
                return choice
        raise ValueError(f"{text!r} is none of {', '.join(map(str, get_args(kind)))}")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None


def _first_part(boxed: str) -> str:
    """What tyro says of bad arguments, without the frame, the title, and the help that it repeats."""
    body = boxed.partition("\n")[2] if boxed.startswith("╭") else boxed
    text = " ".join(_FRAME.sub(" ", _RULE.split(body)[0]).split()).removeprefix("Error parsing ").rstrip(".")
    return text[:1].lower() + text[1:]
