"""Model cards: nothing left to fill in, and the values of a record where Hugging Face looks for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from commands import run
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

import imagefolder
from leaderboard.__main__ import command as leaderboard
from leaderboard.record import Added
from leaderboard.store import read_record, write_record

pytestmark = pytest.mark.usefixtures("tiny_mini")
SOURCE = "https://example.org/record.json"


@pytest.fixture
def record(imagefolder_row: Path) -> Path:
    (path,) = (imagefolder_row / "records").glob("*.json")
    return path


def test_the_card_of_a_saved_model_has_nothing_left_to_fill_in(tmp_path: Path) -> None:
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256")
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer)
    for model, kind in ((tokenizer, "tokenizer"), (generator, "generator")):
        model.save_pretrained(tmp_path / kind)
        text = (tmp_path / kind / "README.md").read_text()
        assert "More Information Needed" not in text
        assert "{{" not in text
        data = metadata_load(tmp_path / kind / "README.md")
        assert data is not None
        assert (data["license"], data["license_name"], data["library_name"]) == (
            "other",
            "see-model-card",
            "imagefolder",
        )
        assert "arxiv:2410.01756" in data["tags"]
        assert "model-index" not in data
        assert f"# {model.config.name}\n" in text
        assert "| codebook | 256 codes" in text
        assert "https://arxiv.org/abs/2410.01756" in text
        tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        assert len(tables) == 1
        assert len(tables[0].splitlines()) > 8
    code = re.search(r"```python\n(.*?)```", (tmp_path / "tokenizer" / "README.md").read_text(), re.DOTALL)
    assert code is not None
    script = code[1].replace("path/to/this/folder", str(tmp_path / "tokenizer"))
    names = {"images": torch.zeros(1, 3, 32, 32)}
    exec(script, names)
    assert names["images"].shape == (1, 3, 32, 32)


def test_cards_hold_the_values_of_the_record(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(leaderboard, "card", record, "--source", SOURCE, "--license", "apache-2.0") == 0
    cards = [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith("README.md")]
    known, seen = read_record(record), {}
    assert len(cards) == 2
    for path in cards:
        assert (path.parent / "model.safetensors").is_file()
        card = ModelCard.load(path)
        assert card.data.license == "apache-2.0"
        assert "More Information Needed" not in card.text
        ((name, results),) = [model_index_to_eval_results(metadata_load(path)["model-index"])]
        assert name == json.loads((path.parent / "config.json").read_text())["config"]["name"]
        entries = parse_eval_result_entries(
            yaml.safe_load((path.parent / ".eval_results/imagefolder.yaml").read_text())
        )
        assert [entry.value for entry in entries] == [result.metric_value for result in results]
        for result, entry in zip(results, entries, strict=True):
            assert (result.verified, result.source_url, entry.source_url) == (False, SOURCE, SOURCE)
            assert result.metric_args["protocol"] in entry.notes
            assert entry.date == known.run.finished
            assert (entry.dataset_id, result.dataset_args["sha256"]) == ("digits", known.dataset.sha256)
            seen[result.metric_args["protocol"]] = result.metric_value
        assert (path.parent / "record.json").read_bytes() == record.read_bytes()
        (picture,) = path.parent.glob("*.png")
        assert f"]({picture.name})" in card.text
    assert seen == {metric.protocol.key: metric.value for metric in known.metrics}


def test_a_saved_copy_gets_the_card_and_other_weights_do_not(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = record.parents[1] / next(c.path for c in read_record(record).checkpoints if c.role == "tokenizer")
    imagefolder.Tokenizer.from_pretrained(trained.parent).save_pretrained(tmp_path / "copy")
    assert run(leaderboard, "card", record, tmp_path / "copy") == 0
    assert "proxy-rFID" in (tmp_path / "copy" / "README.md").read_text()
    data = metadata_load(tmp_path / "copy" / "README.md")
    assert data is not None
    assert all("source" not in result for result in data["model-index"][0]["results"])
    name = json.loads((tmp_path / "copy" / "config.json").read_text())["config"]["name"]
    imagefolder.load_tokenizer(name).save_pretrained(tmp_path / "other")
    capsys.readouterr()
    for arguments, reason in (
        ((record, tmp_path / "other"), "not the weights that"),
        ((record, tmp_path), "holds no model.safetensors"),
        ((record, "--source", "javascript:alert(1)"), "is not a web address"),
    ):
        assert run(leaderboard, "card", *arguments) == 2
        err = capsys.readouterr().err
        assert reason in err
        assert err.count("\n") == 1


def test_a_row_of_others_has_no_model(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    added = read_record(record).model_copy(update={"row": "added-x", "added": Added(author="Ada")})
    path = write_record(tmp_path / "records", added)
    assert run(leaderboard, "card", path) == 2
    assert "holds measured images of others, no model" in capsys.readouterr().err
