"""Odd profiles, odd folders and damaged journals: either the right result, or one line that names the problem."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from in_process import run_in_process, slurm_command

from imagefolder.errors import one_line
from slurm import SlurmError, Stage
from slurm.batch import sbatch_text
from slurm.journal import Journal
from slurm.launch import submit
from slurm.profile import LARGEST, Profile, load_profile, user_folder
from slurm.status import read_status

VALUES = 270
NAMES = 150
OVERRIDES = 200
PROFILES = 200
FLIPS = 200
SECRET = "hf_s3cret"

bounded = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
words = st.text(max_size=12) | st.sampled_from(
    [
        "a\nb",
        "a\r\n#SBATCH --uid=0",
        "\x85",
        "\u2028x",
        "$(id)",
        "`id`",
        "'; id; '",
        '"',
        "\\",
        " #x",
        "--wrap=id",
        "\0",
    ]
)


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty folder of the user's own profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "imagefolder"
    folder.mkdir(parents=True)
    return folder


def is_line(text: str) -> bool:
    return bool(text) and one_line(f"|{text}|") == f"|{text}|"


def refusal(function: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The one-line message of a refusal."""
    with pytest.raises(SlurmError) as error:
        function(*arguments, **named)
    assert is_line(str(error.value))
    return str(error.value)


def outcome(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """The result of a call, or the one-line message of its refusal."""
    try:
        return function(*arguments), ""
    except SlurmError as error:
        return None, str(error)


def text_of(override: str) -> str:
    return sbatch_text(Path("/run"), load_profile("slurm", [override]).settings("small"), "name", "")


PLACES = {
    "partition=": ("x", "#SBATCH --partition="),
    "small.account=": ("x", "#SBATCH --account="),
    "qos=": ("x", "#SBATCH --qos="),
    "constraint=": ("x", "#SBATCH --constraint="),
    "gres=": ("gpu:1", "#SBATCH --gres="),
    "memory=": ("1G", "#SBATCH --mem="),
    "python=": ("x", None),
    "environment.A=": ("x", "export A="),
    "sbatch.comment=": ("x", "#SBATCH --comment="),
}


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=VALUES // len(PLACES), **bounded)
@given(value=words)
def test_values_stay_in_their_line(tally: Any, place: str, value: str) -> None:
    innocent, beginning = PLACES[place]
    expected = text_of(place + innocent).splitlines()
    text, error = outcome(text_of, place + value)
    tally("values of profiles").add("refused" if text is None else "right")
    if text is None:
        assert is_line(error)
        return
    lines = text.splitlines()
    if len(lines) < len(expected):
        assert value in ("", "null", "~")  # no value: the line is missing
        return
    assert sum(line != other for line, other in zip(lines, expected, strict=True)) <= 1
    if beginning is not None and value != "true":  # which makes an option a bare flag
        (line,) = (line for line in lines if line.startswith(beginning))
        assert shlex.split(line.removeprefix(beginning)) == [value]


@settings(max_examples=NAMES, **bounded)
@given(kind=st.sampled_from(["environment", "sbatch"]), name=words, value=words)
@example(kind="environment", name="A;touch /tmp/x;B", value="1")
@example(kind="environment", name="MY-VAR", value="1")
@example(kind="sbatch", name="x y\ntouch /tmp/x", value="1")
def test_names_add_no_lines(tally: Any, kind: str, name: str, value: str) -> None:
    text, error = outcome(text_of, f"{kind}.{name}={value}")
    tally("names in profiles").add("refused" if text is None else "right")
    if text is None:
        assert is_line(error)
        return
    before = len(text_of("nodes=1").splitlines())
    assert len(text.splitlines()) - before in ((0, 1) if kind == "sbatch" else (0, 3))  # "", "# setup", export


keys = st.lists(st.sampled_from([*Profile.model_fields, "training", "small", "kinds", "a", "", "x;y"]), max_size=5)


@settings(max_examples=OVERRIDES, **bounded)
@given(key=keys, value=words | st.sampled_from(["{a: b}", "[1, [2]]", "{a: &x 1, b: *x}", "9" * 40, "1e999", "-1"]))
@example(key=["nodes", "x"], value="1")
@example(key=["a"] * 20_000, value="1")
@example(key=["nodes"], value="1" + "0" * 5000)
@example(key=["training"], value="{" * 3000)
@example(key=["environment"], value='{"\\U99999999": 1}')
def test_overrides_make_a_profile_or_one_line(tally: Any, key: list[str], value: str) -> None:
    profile, error = outcome(load_profile, "slurm", [f"{'.'.join(key)}={value}"])
    tally("overrides").add("refused" if profile is None else "right")
    assert is_line(error) if profile is None else set(profile.kinds) == {"training", "evaluation", "small"}


known = st.sampled_from(list(Profile.model_fields))
few = st.integers(1, 9) | words
plausible = {"partition": words, "nodes": few, "time": few, "environment": st.dictionaries(words, words, max_size=2)}
plausible |= {"setup": st.lists(words, max_size=2), "sbatch": st.dictionaries(words, words, max_size=1)}
anything = st.recursive(few | st.none(), lambda inner: st.lists(inner) | st.dictionaries(known, inner), max_leaves=9)
contents = st.fixed_dictionaries({}, optional=plausible) | st.dictionaries(known, anything, max_size=2) | anything
documents = contents.map(lambda content: yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"))


@settings(max_examples=PROFILES, **bounded)
@given(content=documents | st.binary(max_size=60))
@example(b"\xef\xbb\xbfnodes: 2")
@example(b'setup: ["\\U99999999"]')
@example(b"%YAML 9.9\n---\n")
@example(b"? [a]\n: b")
@example(b"nodes: 2\nnodes: 3")
@example(b"kinds:\n  small:\n")
@example(b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n")
@example(b"setup: " + b"[" * 50_000)
@example(b"nodes: 1\0")
def test_files_make_a_profile_or_one_line(tally: Any, own: Path, content: bytes) -> None:
    (own / "any.yaml").write_bytes(content)
    profile, error = outcome(load_profile, "any")
    tally("files of profiles").add("refused" if profile is None else "right")
    if profile is None:
        assert is_line(error)
        assert "any.yaml" in error
        return
    for kind in profile.kinds:
        text = sbatch_text(Path("/run"), profile.settings(kind), "name", "")
        assert text.count("\n# command\nexport SUBMITIT_EXECUTOR=slurm\nsrun --unbuffered") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("account=a\nb", r"account: 'a\\nb': must be one line"),
        ('setup=[date, "a\\nb"]', r"setup.1: 'a\\nb': must be one line"),
        ("partition=a b", "partition: 'a b': must be one word"),
        ("nodes.x=1", "'nodes' holds no further keys; these do: environment, sbatch, training"),
        ("trainig.nodes=1", "'trainig' holds no further keys"),
        ("kinds.gpu.nodes=1", "there is no kind 'gpu'; there are: training, evaluation, small"),
        ("cpus_per_task=100000000000", "cpus_per_task: '100000000000': Input should be less"),
        ("signal_delay=65536", "signal_delay: '65536'"),
        ("gres=gpu:a100:99999", "must request at most 1,000 GPUs"),
        ("srun=[touch, /tmp/x]", "srun.0: 'touch': must be one option"),
        ("srun=[--outp=x]", "srun.0: '--outp=x': is set by the launcher"),
        ("sbatch.outp=x", r"sbatch.outp is set by the launcher"),
        ("sbatch.parsable=true", r"sbatch.parsable is set by the launcher"),
        (f"environment: {SECRET}", "is not KEY=VALUE"),
        (f"environment={{A={SECRET}}}", "names of variables"),
        (f"environment.A={SECRET}\n", "environment.A: must be one line"),
        (f"training={{environment: {{A: {{b: {SECRET}}}}}}}", "environment.A"),
        (f"environment=[A={SECRET}]", "environment"),
        (f"environment={{A: !{SECRET}!x y}}", "not YAML"),
    ],
)
def test_refusals_name_the_problem_but_no_secret(override: str, message: str) -> None:
    error = refusal(load_profile, "slurm", [override])
    assert message.replace("\\\\", "\\") in error
    assert SECRET not in error


def test_meaningful_values_are_kept() -> None:
    overrides = [
        "constraint=[rack1|rack2*2]&a,(b)",
        "sbatch.nodelist=n[1-2]",
        'environment.A={"a": [1]}',
        'setup=["\\tx"]',
    ]
    small = load_profile("slurm", [*overrides, "environment.B=", "srun=[--cpu-bind=none, -c4]"]).settings("small")
    assert small.constraint == "[rack1|rack2*2]&a,(b)"
    assert small.sbatch == {"nodelist": "n[1-2]"}
    assert small.environment == {"A": '{"a": [1]}', "B": ""}  # a variable may be empty
    assert (small.setup, small.srun) == (["\tx"], ["--cpu-bind=none", "-c4"])


def test_other_things_than_files_are_no_profiles(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(100_000_000)
    assert "folder.yaml cannot be read: it is a folder" in refusal(load_profile, tmp_path / "folder.yaml")
    assert "pipe.yaml cannot be read: it is not a regular file" in refusal(load_profile, tmp_path / "pipe.yaml")
    assert f"more than {LARGEST:,} bytes" in refusal(load_profile, tmp_path / "big.yaml")
    for name in (str(tmp_path), "a\0b", "a\0.yaml", "x" * 5000, "\udcff", "", "._default"):
        (own / "._default.yaml").write_bytes(b"\0\5\x16\7")  # macOS writes these to foreign disks
        assert "._default" not in refusal(load_profile, name).removeprefix("no profile '._default'")
    os.mkfifo(own / "default.yaml")
    assert "default.yaml cannot be read" in refusal(load_profile)  # and no other profile is used instead
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert user_folder() is None
    assert load_profile("slurm").cluster == "slurm"


BAD_FOLDERS = ["100%normal", "a%%b", "back\\slash", "two\nlines", "\x1b[31m", "\u2028", "\udcff", "nul\0"]


@pytest.mark.parametrize("cluster", ["slurm", "local"])
@pytest.mark.parametrize("name", BAD_FOLDERS, ids=range(len(BAD_FOLDERS)))
def test_folders_that_slurm_misreads_are_refused(tmp_path: Path, cluster: str, name: str) -> None:
    before = sorted(tmp_path.iterdir())
    for dry_run in (True, False):
        error = refusal(submit, tmp_path / name, [Stage("a", print)], profile=cluster, dry_run=dry_run)
        assert error.startswith("run folder ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["two  spaces ", "it's", 'a"b', "$HOME `id`", "[a]{b}*?", "#x;&(y)", "é 日本", "~", "-x"]
)
def test_odd_folders_and_names_work(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.launch.run_local", run_in_process)
    run = tmp_path / name
    text = sbatch_text(run, load_profile("slurm").settings("small"), "name", "")
    (written,) = (line for line in text.splitlines() if line.startswith("#SBATCH --output="))
    assert shlex.split(written.removeprefix("#SBATCH --output=")) == [f"{run}/%j_0_log.out"]
    assert shlex.split(text.splitlines()[-1])[:4] == ["srun", "--unbuffered", "--output", f"{run}/%j_%t_log.out"]
    stages = [
        Stage(f"{name}\n;$(id)\x1b", os.makedirs, (run / "done",)),
        Stage(f"bad {name}", os.rmdir, (run / "x\ny",)),
    ]
    failed = submit(run, stages, profile="local")
    assert (run / "done").is_dir()
    assert list(failed) == [f"bad {name}"]
    assert all(map(is_line, failed.values()))
    assert slurm_command("status", run) == 1
    assert all(map(is_line, filter(None, capfd.readouterr().out.splitlines())))


STAGES = ("first", "second; 2", "bad")


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on this machine with one failed stage. Do not modify it: copy it."""
    run = tmp_path_factory.mktemp("submitted") / "run"
    stages = [
        Stage(STAGES[0], os.makedirs, (run / "done",)),
        Stage(STAGES[1], os.listdir, (run,), after=(STAGES[0],)),
        Stage(STAGES[2], os.rmdir, (run / "nowhere",)),
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("slurm.launch.run_local", run_in_process)
        assert list(submit(run, stages, profile="local", overrides=[f"environment.TOKEN={SECRET}"])) == ["bad"]
    return run


def damaged_copy(submitted: Path, folder: Path, file: str, damage: Callable[[Path], Any]) -> tuple[Path, Path]:
    run = folder / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(submitted, run)
    path = next((run / "slurm").glob(file))
    damage(path)
    return run, path


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": rewrite(lambda content: b""),
    "cut": rewrite(lambda content: content[: len(content) // 2]),
    "not UTF-8": rewrite(lambda content: b"\xff\xfe" + content[2:]),
    "list": rewrite(lambda content: b"[]\n"),
    "number": rewrite(lambda content: b"1e999\n"),
    "object": rewrite(
        lambda content: b'{"stages": [], "stage": 1, "processes": "x", "time": {}, "event": "submitted"}\n'
    ),
    "nested": rewrite(lambda content: b"[" * 100_000),
    "NUL": rewrite(lambda content: b"\0" * len(content)),
    "twice": rewrite(lambda content: content + content),
    "missing": lambda path: path.unlink(),
    "pipe": as_pipe,
    "folder": as_folder,
}
FILES = ("graph.json", "graph.pkl", "jobs.jsonl", "jobs/*_0_finished.json", "jobs/*_failed.json", "lock")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damaged_files_are_named_or_not_needed(
    tally: Any,
    submitted: Path,
    tmp_path: Path,
    file: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slurm.launch.run_local", run_in_process)
    for command in (["status"], ["cancel"], ["logs", "bad"], ["resubmit", "--dry-run"], ["resubmit"]):
        run, path = damaged_copy(submitted, tmp_path, file, DAMAGES[damage])
        code = slurm_command(*command, run)
        error = capsys.readouterr().err
        assert SECRET not in error
        assert code in (0, 1, 2)
        tally("journals").add("refused" if code == 2 else "recovered")
        if code == 2:
            (line,) = (line for line in error.splitlines() if line.startswith("error: "))
            assert is_line(line)
            assert str(path) in line or "log.out" in line
        if file == "graph.json" or (file == "graph.pkl" and command[0] == "resubmit"):
            assert code == 2 or damage == "twice", (command, error)


@settings(max_examples=FLIPS, **bounded)
@given(file=st.sampled_from(FILES[:5]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bits_change_nothing_silently(
    tally: Any, submitted: Path, tmp_path: Path, file: str, place: float, bit: int
) -> None:
    def flip(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

    run, _ = damaged_copy(submitted, tmp_path, file, rewrite(flip))
    whole, journal = Journal(submitted), Journal(run)
    states, error = outcome(read_status, journal)
    tally("flipped bits").add("recovered" if states else "refused")
    if states is None:
        assert file == "graph.json"
        assert is_line(error)
        return
    assert journal.graph() == whole.graph()
    assert all(event in whole.events() for event in journal.events())
    for name, status in read_status(whole).items():  # what can no longer be read is repeated, not trusted
        assert states[name].state in (status.state, "failed", "not submitted")
    stages, error = outcome(journal.stages)
    assert is_line(error) if stages is None else stages == whole.stages()
