"""The page itself, served and used as a browser does."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagefolder.demo.page import HOST, _gradio, build, launch
from imagefolder.errors import InputError

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[Any]:
    page = build(_gradio(), [runs])
    from gradio_client import Client

    _, address, _ = page.launch(server_name=HOST, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False)
    yield Client(address, verbose=False)
    page.close(verbose=False)


def test_samples_come_scale_by_scale(client: Any, runs: Path) -> None:
    job = client.submit(str(runs / "generators" / "var"), 7, 2, 0, api_name="/sample")
    job.result(timeout=60)
    assert [Image.open(path).size for path in job.outputs()] == [(3 * 96 + 8, 18 + 2 * 96 + 4)] * 3


def test_pictures_are_reconstructed_and_swapped(client: Any, runs: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    Image.effect_noise((40, 30), 80).save(tmp_path / "a.png")
    name, picture = str(runs / "generators" / "var"), handle_file(str(tmp_path / "a.png"))
    alone = client.predict(name, picture, None, 1, api_name="/show")
    assert Image.open(alone).size[0] == 4 * 96 + 12
    both = client.predict(name, picture, picture, 1, api_name="/show")
    assert Image.open(both).size == (3 * 96 + 8, 18 + 2 * 96 + 4)


def test_another_model_is_chosen_by_path(client: Any, runs: Path) -> None:
    about, label, branch = client.predict(str(runs / "tokenizers" / "one"), api_name="/choose")
    assert "no generator" in about
    assert not label["interactive"]
    assert not branch["visible"]
    about, *_ = client.predict(str(runs / "tokenizers" / "two"), api_name="/choose")
    assert "2 branches" in about
    about, label, branch = client.predict(str(runs / "generators" / "var"), api_name="/choose")
    assert "14 positions" in about
    assert label["choices"][7] == ["digit 7", 7]
    assert branch["visible"]


def test_bad_input_is_shown_in_its_line(client: Any, runs: Path) -> None:
    with pytest.raises(Exception, match="no such folder"):
        client.predict(str(runs / "nothing"), api_name="/choose")
    with pytest.raises(Exception, match="drop in a picture first"):
        client.predict(str(runs / "tokenizers" / "one"), None, None, 0, api_name="/show")


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    with urllib.request.urlopen(client.src) as response:
        html = response.read().decode()
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?://[^"]*)"', html)
    assert [address for address in loaded if not address.startswith(client.src)] == []
    assert '"analytics_enabled":false' in html.replace(" ", "")


def test_a_port_in_use_is_named(runs: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"{port}.*choose another --port"):
            launch([runs], port, open_browser=False)
