"""The Python of docs/library.md and README.md runs as it is printed, in an empty folder with models and pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import running_hub
from PIL import Image
from safetensors.torch import save_file

import imagefolder
from imagefolder.evaluation.proxy import ProxyNet

ROOT = Path(__file__).parent.parent
LIBRARY, README = ROOT / "docs" / "library.md", ROOT / "README.md"
TOKENIZER, GENERATOR = "mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"
MOST_LINES = 9

SMALLER = f"""
from dataclasses import replace
from imagefolder.zoo import GENERATORS, TOKENIZERS
TOKENIZERS["MSVR10P2-4096"] = replace(TOKENIZERS[{TOKENIZER!r}], name="MSVR10P2-4096")
GENERATORS["VAR-d17-MSVR10P2-4096"] = replace(GENERATORS[{GENERATOR!r}], name="VAR-d17-MSVR10P2-4096")
"""
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for origin, line, code in json.load(sys.stdin):
    exec(compile("\\n" * line + code, origin, "exec"), namespace)
"""


def snippets(document: Path) -> Iterator[tuple[str, int, str]]:
    """File, number of lines above, and text of the Python blocks of a document."""
    text = document.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield str(document), text[: block.start(1)].count("\n"), block[1]


def draw_picture(path: Path, seed: int, size: tuple[int, int] = (96, 72)) -> None:
    """Smooth shapes, as in a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the snippets find: pictures, samples, a proxy extractor, and a tokenizer and a generator of 32 pixels."""
    for seed, name in enumerate(("photo.jpg", "other.jpg")):
        draw_picture(tmp_path / name, seed)
    for seed in range(24):
        draw_picture(tmp_path / ("samples" if seed % 2 else "reference") / f"{seed}.png", seed, (32, 32))
    torch.manual_seed(0)
    save_file(ProxyNet(10).state_dict(), tmp_path / "extractor.safetensors")
    tokenizer = imagefolder.load_tokenizer(TOKENIZER)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    imagefolder.load_generator(GENERATOR, tokenizer).save_pretrained(tmp_path / "generator")
    return tmp_path


def run(blocks: list[tuple[str, int, str]], folder: Path) -> str:
    """Run blocks one after the other in a process of their own, whose hub is a local one; returns what they print."""
    with running_hub() as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(folder / "home"),
            "HF_TOKEN": "hf_x",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", RUNNER],
            input=json.dumps(blocks),
            env=os.environ | environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_snippets_of_the_library_run(folder: Path) -> None:
    blocks = list(snippets(LIBRARY))
    too_long = [f"{origin}:{line + 1}" for origin, line, code in blocks if len(code.splitlines()) > MOST_LINES]
    assert too_long == []
    printed = run(blocks, folder)
    assert re.search(r"proxy-rFID@1/digits/test/proxy-cnn:[0-9a-f]{8}: \S+ \(n = 450\)", printed)
    for name in ("reconstructions", "growing", "swapped"):
        assert Image.open(folder / f"{name}.png").size[0] > 32
    assert (folder / "copy" / "model.safetensors").read_bytes() == (
        folder / "tokenizer" / "model.safetensors"
    ).read_bytes()


def test_the_snippets_of_the_readme_run(folder: Path) -> None:
    """The released models are replaced by small ones, and the authors' files by such files of theirs."""
    torch.save({"ema": imagefolder.load_tokenizer(TOKENIZER).state_dict()}, folder / "best_ckpt.pt")
    generator = imagefolder.load(folder / "generator", tokenizer=folder / "tokenizer")
    torch.save({"trainer": {"var_wo_ddp": generator.transformer.state_dict()}}, folder / "ar-ckpt-last.pth")
    blocks = list(snippets(README))
    assert blocks
    assert TOKENIZER in run([("smaller models", 0, SMALLER), *blocks], folder)
