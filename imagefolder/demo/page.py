"""The page: two sheets of pictures with their controls. It loads nothing from elsewhere and reports nothing."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagefolder.data.digits import digits
from imagefolder.demo.models import Model, describe, find_models, load_model
from imagefolder.demo.pictures import growing, reconstructed, swapped
from imagefolder.errors import InputError, reason

HOST = "127.0.0.1"
SECONDS_PER_SCALE = 0.4


def launch(places: Sequence[Path], port: int, open_browser: bool) -> None:
    """Serve the page until it is interrupted; `InputError` if gradio or models are missing, or the port is in use."""
    gradio = _gradio()
    page = build(gradio, places)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # others are fetched
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=open_browser,
            quiet=True,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            theme=theme,
            footer_links=[],
        )
    except OSError as error:  # gradio's message names the port
        raise InputError(f"{reason(error)}; choose another --port") from None
    print(f"http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)


def build(gradio: Any, places: Sequence[Path]) -> Any:
    """The page for the models below `places`, as gradio's `Blocks`."""
    models = find_models(places)
    first = next(iter(models))

    def chosen(name: str) -> Model:
        """The model of an entry of the list, or of a path that somebody typed."""
        found = models.get(name) or find_models([Path(name), *places]).get(str(Path(name)))
        if found is None:
            raise InputError(f"{name}: a generator whose tokenizer is not below {', '.join(map(str, places))}")
        return load_model(found)

    @_errors_shown(gradio)
    def choose(name: str) -> Iterator[tuple[str, Any, Any]]:
        model = chosen(name)
        yield describe(model), _class(gradio, model), _branch(gradio, model)

    @_errors_shown(gradio)
    def sample(name: str, label: int | None, number: float, seed: float) -> Iterator[Image.Image]:
        for picture in growing(chosen(name), label or 0, number=int(number), seed=int(seed)):
            yield picture
            time.sleep(SECONDS_PER_SCALE)

    @_errors_shown(gradio)
    def show(name: str, a: Image.Image | None, b: Image.Image | None, branch: float) -> Iterator[Image.Image]:
        model = chosen(name)
        if a is None:
            raise InputError("drop in a picture first")
        if b is None or model.tokenizer.config.branches == 1:
            yield reconstructed(model, a)
        else:
            yield swapped(model, a, b, int(branch))

    model = load_model(models[first])
    with gradio.Blocks(title="ImageFolder", analytics_enabled=False) as page:
        shown = {"format": "png", "show_label": False, "scale": 2, "buttons": ["download", "fullscreen"]}
        gradio.Markdown("# ImageFolder")
        name = gradio.Dropdown(list(models), value=first, label="model, or the path of one", allow_custom_value=True)
        about = gradio.Markdown(describe(model))
        with gradio.Row():
            with gradio.Column(scale=1):
                gradio.Markdown("## Samples, scale by scale")
                label = _class(gradio, model)
                number = gradio.Slider(1, 8, value=3, step=1, label="samples")
                seed = gradio.Number(0, precision=0, label="seed")
                start = gradio.Button("Sample", variant="primary")
            samples = gradio.Image(label="samples", **shown)
        with gradio.Row():
            with gradio.Column(scale=1):
                gradio.Markdown("## Swap a branch\nOf one picture alone, see its reconstruction.")
                with gradio.Row():
                    options = {"type": "pil", "sources": ["upload", "clipboard"], "height": 160, "min_width": 120}
                    a = gradio.Image(_digit(0), label="picture", **options)
                    b = gradio.Image(_digit(1), label="another", **options)
                branch = _branch(gradio, model)
                go = gradio.Button("Show", variant="primary")
            pictures = gradio.Image(label="pictures", **shown)
        name.change(choose, name, [about, label, branch])
        gradio.on([start.click, page.load], sample, [name, label, number, seed], samples)
        gradio.on([go.click, page.load], show, [name, a, b, branch], pictures)
    return page


def _class(gradio: Any, model: Model) -> Any:
    """The choice of a class that a model has."""
    generator = model.generator
    names = [] if generator is None else generator.classes or map(str, range(generator.config.num_classes))
    choices = [(name, number) for number, name in enumerate(names)]
    return gradio.Dropdown(choices, value=0 if choices else None, label="class", interactive=bool(choices))


def _branch(gradio: Any, model: Model) -> Any:
    """The choice of a branch that a model has."""
    branches = list(range(model.tokenizer.config.branches))
    return gradio.Radio(branches, value=branches[-1], label="branch to swap", visible=len(branches) > 1)


def _digit(place: int) -> Image.Image:
    """A test image of the digits, to try without a file of one's own."""
    images, _ = digits().test.__getitems__([(0, place)])
    return Image.fromarray(images[0].movedim(0, -1).numpy())


def _errors_shown(gradio: Any) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """Decorator: the page shows the line about bad input."""

    def decorate(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @functools.wraps(function)
        def shown(*arguments: Any) -> Iterator[Any]:
            try:
                yield from function(*arguments)
            except InputError as error:
                raise gradio.Error(str(error)) from None

        return shown

    return decorate


def _gradio() -> Any:
    """The package, with its reports about use switched off before it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "False"
    return importlib.import_module("gradio")
