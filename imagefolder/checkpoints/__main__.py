"""`python -m imagefolder.checkpoints`: inspect weight files, and convert the authors' files to native checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from tyro.conf import Positional

from imagefolder.cli import subcommands
from imagefolder.config import Config, GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from imagefolder.checkpoints.authors import State

KINDS = {"tokenizer": TokenizerConfig, "generator": GeneratorConfig}


def main() -> NoReturn:
    """Entry point."""
    subcommands({"inspect": inspect, "convert": convert}, prog="python -m imagefolder.checkpoints", description=__doc__)


def inspect(source: Annotated[str, Positional]) -> None:
    """Print what weights a file or native checkpoint holds, and which configurations they fit.

    Args:
        source: native folder, .pt, .pth or .safetensors file, or hf://owner/repo[/file]
    """
    from imagefolder.checkpoints.authors import NoWeights, read_state
    from imagefolder.checkpoints.hub import locate

    path = locate(source)
    if path.is_dir():
        _inspect_native(path)
        return
    for kind, config_type in KINDS.items():
        try:
            state = read_state(path, config_type)
        except NoWeights:
            print(f"{kind}: none")
            continue
        steps = "" if state.steps is None else f", {state.steps} steps"
        fits = _fits(state.tensors, config_type)
        print(f"{kind}: {len(state.tensors)} tensors (from '{state.place}'{steps}), fits {fits}")


def convert(
    source: Annotated[str, Positional],
    folder: Annotated[Path, Positional],
    *,
    kind: Literal["auto", "tokenizer", "generator"] = "auto",
    model: str | None = None,
) -> None:
    """Write the weights of one of the authors' files as model.safetensors and config.json.

    Args:
        source: .pt, .pth or .safetensors file, or hf://owner/repo/file
        folder: folder to create
        kind: what to convert; auto: the generator if the file holds one, as generator files also hold their tokenizer
        model: name of the configuration, if several fit
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; name a new folder")
    from imagefolder.checkpoints.authors import load_authors_state
    from imagefolder.checkpoints.hub import locate
    from imagefolder.checkpoints.native import save_checkpoint
    from imagefolder.loading import build, fitting_models

    path = locate(source)
    if path.is_dir():
        raise InputError(f"{path}: a folder; only files are converted, native checkpoints load as they are")
    config_type, state = _read(path, kind)
    config = _choose(fitting_models(state.tensors, config_type), model, path)
    built = build(config)
    load_authors_state(built, state, str(path))
    origin = {"file": path.name, "sha256": file_sha256(path), "weights": state.place, "steps": state.steps}
    sha256 = save_checkpoint(folder, built, config, converted_from=origin)
    print(f"{folder}: {_describe(config)}, weights '{state.place}' of {path.name}, sha256 {sha256}")


def _inspect_native(folder: Path) -> None:
    import torch

    from imagefolder.checkpoints.native import CONFIG, read_about, read_config, read_weights, require_fitting
    from imagefolder.loading import build

    about = read_about(folder)
    kinds = {config_type.__name__: (kind, config_type) for kind, config_type in KINDS.items()}
    if str(about.get("kind")) not in kinds:
        raise InputError(f"{folder / CONFIG}: its kind is none of {', '.join(kinds)}")
    kind, config_type = kinds[about["kind"]]
    config = read_config(folder, config_type, about)
    with torch.device("meta"):
        require_fitting(folder, build(config))
    state = read_weights(folder, about)
    fits = _fits(state, config_type)
    print(f"{kind}: {len(state)} tensors (native checkpoint of {_describe(config)}), fits {fits}")


def _read(path: Path, kind: str) -> tuple[type[Config], State]:
    from imagefolder.checkpoints.authors import NoWeights, read_state

    if kind != "auto":
        return KINDS[kind], read_state(path, KINDS[kind])
    try:
        return GeneratorConfig, read_state(path, GeneratorConfig)
    except NoWeights:
        return TokenizerConfig, read_state(path, TokenizerConfig)


def _choose(fitting: list[Config], model: str | None, path: Path) -> Config:
    names = [config.name for config in fitting]
    if model is not None:
        if model not in names:
            raise InputError(f"{path}: does not fit {model} (fits: {', '.join(names) or 'none of the zoo'})")
        return fitting[names.index(model)]
    if not fitting:
        raise InputError(f"{path}: fits no configuration of the zoo; load it with load_tokenizer and overrides")
    if len(fitting) > 1:
        raise InputError(f"{path}: fits {' and '.join(names)}; choose one with --model")
    return fitting[0]


def _fits(state: Mapping[str, Tensor], config_type: Any) -> str:
    from imagefolder.loading import fitting_models

    return " or ".join(map(_describe, fitting_models(state, config_type))) or "no known configuration"


def _describe(config: Config) -> str:
    return f"{config.name} on {config.backbone}" if isinstance(config, TokenizerConfig) else config.name


if __name__ == "__main__":
    main()
