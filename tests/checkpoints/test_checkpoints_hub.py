"""Publishing to and loading from a hub: huggingface_hub's own client against a test server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Hub, running_hub

import imagefolder
from imagefolder.checkpoints.hub import locate
from imagefolder.checkpoints.native import save_checkpoint

NAME, GENERATOR = "mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"


@pytest.fixture
def hub():
    with running_hub() as server:
        yield server


def run(code: str, endpoint: str, cache: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run in a separate process, because the client reads its endpoint when it is imported."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
    script = f"import imagefolder, torch\nfrom imagefolder import InputError\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def publish(hub: Hub, repo: str, folder: Path, files: list[str]) -> None:
    hub.files |= {f"{repo}/{name}": (folder / name).read_bytes() for name in files}


@pytest.fixture
def published(hub, tmp_path):
    tokenizer = imagefolder.load_tokenizer(NAME)
    save_checkpoint(tmp_path / "tokenizer", tokenizer, tokenizer.config)
    publish(hub, "me/tok", tmp_path / "tokenizer", ["model.safetensors", "config.json"])
    return tokenizer


def test_published_models_load_and_are_cached(hub, tmp_path):
    code = f"""
torch.manual_seed(1)
tokenizer = imagefolder.load_tokenizer({NAME!r})
generator = imagefolder.load_generator({GENERATOR!r}, tokenizer=tokenizer)
tokenizer.push_to_hub("me/tok")
generator.push_to_hub("me/gen")
again = imagefolder.Tokenizer.from_pretrained("me/tok")
by_location = imagefolder.load_tokenizer({NAME!r}, weights="hf://me/tok")
sampler = imagefolder.Generator.from_pretrained("me/gen", tokenizer=again)
pinned = imagefolder.load_generator({GENERATOR!r}, tokenizer=again, weights="hf://me/gen@{COMMIT}/model.safetensors")
def equal(a, b): return all(torch.equal(v, b.state_dict()[n]) for n, v in a.state_dict().items())
print(equal(tokenizer, again), equal(tokenizer, by_location), equal(generator, sampler), equal(generator, pinned))
"""
    result = run(code, hub.endpoint, tmp_path / "home")
    assert result.stdout.strip() == "True True True True", result.stderr
    assert {"me/tok/model.safetensors", "me/tok/config.json", "me/tok/README.md"} <= hub.files.keys()
    card = hub.files["me/tok/README.md"].decode()
    assert "arxiv:2410.01756" in card
    assert 'Tokenizer.from_pretrained("me/tok")' in card
    assert "More Information Needed" not in card + hub.files["me/gen/README.md"].decode()
    downloads = [r for r in hub.requests if r.startswith("GET") and "model.safetensors" in r]
    assert len(downloads) == 2  # one each: cached files are not downloaded again
    # The cache works without network
    code = f"imagefolder.load_tokenizer({NAME!r}, weights='hf://me/tok'); print('loaded')"
    result = run(code, "http://127.0.0.1:9", tmp_path / "home")
    assert result.stdout.strip() == "loaded", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_download_that_does_not_match_its_hash_is_refused_and_removed(hub, published, tmp_path, file):
    hub.corrupt.add(f"me/tok/{file}")
    code = f"""
for attempt in range(2):
    try: imagefolder.load_tokenizer({NAME!r}, weights="hf://me/tok")
    except InputError as error: print(error)
"""
    result = run(code, hub.endpoint, tmp_path / "home")
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2, result.stderr
    assert all(f"{file}: the download did not match its hash" in line for line in lines)


@pytest.mark.slow
def test_what_does_not_exist_is_named(hub, published, tmp_path):
    code = f"""
for weights in ("hf://me/none", "hf://me/tok/other.pt", "hf://tok"):
    try: imagefolder.load_tokenizer({NAME!r}, weights=weights)
    except InputError as error: print(error)
"""
    lines = run(code, hub.endpoint, tmp_path / "home").stdout.strip().splitlines()
    assert "hf://me/none/config.json: no such repository" in lines[0]
    assert "hf://me/tok/other.pt: the repository has no such file" in lines[1]
    assert "hf://tok: expected hf://owner/repo" in lines[2]


@pytest.mark.slow
def test_authors_files_load_from_a_hub(hub, published, tmp_path):
    content = io.BytesIO()
    torch.save({"ema": published.state_dict()}, content)
    hub.files["authors/zoo/files/best_ckpt.pt"] = content.getvalue()
    weights = "hf://authors/zoo/files/best_ckpt.pt"
    code = f"t = imagefolder.load_tokenizer({NAME!r}, weights={weights!r}); print(float(t.quant_conv.bias[3]))"
    result = run(code, hub.endpoint, tmp_path / "home")
    assert float(result.stdout) == float(published.quant_conv.bias[3].detach()), result.stderr


@pytest.mark.slow
def test_without_network_it_fails_at_once_with_one_line(tmp_path):
    code = f"""
import time
for call in (lambda: imagefolder.load_tokenizer({NAME!r}, weights="hf://me/tok"),
             lambda: imagefolder.Tokenizer.from_pretrained("me/tok")):
    clock = time.monotonic()
    try: call()
    except InputError as error: print(time.monotonic() - clock, error)
"""
    clock = time.monotonic()
    result = run(code, "http://127.0.0.1:9", tmp_path / "home")
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2, result.stderr
    for line in lines:
        assert "http://127.0.0.1:9 cannot be reached" in line
        assert "hf://me/tok/config.json" in line
        assert float(line.split()[0]) < 10  # a hub client alone retries for most of a minute
    assert time.monotonic() - clock < 60


def test_saved_folders_are_native_checkpoints(tmp_path):
    tokenizer = imagefolder.load_tokenizer(NAME)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["kind"] == "TokenizerConfig"
    assert "imagefolder" in (tmp_path / "saved" / "README.md").read_text()
    again = imagefolder.load_tokenizer(NAME, weights=tmp_path / "saved")
    assert torch.equal(again.quant_conv.weight, tokenizer.quant_conv.weight)
    assert locate(tmp_path / "saved" / "model.safetensors") == tmp_path / "saved"
    with pytest.raises(imagefolder.InputError, match="unknown GeneratorConfig field"):
        imagefolder.Generator.from_pretrained(tmp_path / "saved", tokenizer=tokenizer)
