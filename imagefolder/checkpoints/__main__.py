"""`python -m imagefolder.checkpoints`: `inspect` says what a file holds, `convert FILE FOLDER` makes a native one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from imagefolder.checkpoints.authors import Config, NoWeights, State, load_authors_state, read_state
from imagefolder.checkpoints.hub import locate
from imagefolder.checkpoints.native import (
    CONFIG,
    read_about,
    read_config,
    read_weights,
    require_fitting,
    save_checkpoint,
)
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError, one_line
from imagefolder.files import file_sha256
from imagefolder.generator.transformer import Transformer
from imagefolder.loading import fitting_models
from imagefolder.tokenizer.model import Tokenizer

KINDS = {"tokenizer": TokenizerConfig, "generator": GeneratorConfig}


@dataclass
class Inspect:
    """Say what weights a native checkpoint or one of the authors' files holds, and which configurations they fit."""

    source: Annotated[str, tyro.conf.Positional]
    """native folder, .pt, .pth or .safetensors file, or hf://owner/repo[/file]"""

    def run(self) -> None:
        path = locate(self.source)
        if path.is_dir():
            self._native(path)
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

    def _native(self, folder: Path) -> None:
        about = read_about(folder)
        kinds = {config_type.__name__: (kind, config_type) for kind, config_type in KINDS.items()}
        if str(about.get("kind")) not in kinds:
            raise InputError(f"{folder / CONFIG}: its kind is none of {', '.join(kinds)}")
        kind, config_type = kinds[about["kind"]]
        config = read_config(folder, config_type, about)
        with torch.device("meta"):
            require_fitting(folder, _build(config))
        state = read_weights(folder, about)
        fits = _fits(state, config_type)
        print(f"{kind}: {len(state)} tensors (native checkpoint of {_describe(config)}), fits {fits}")


@dataclass
class Convert:
    """Write the weights of one of the authors' files as model.safetensors and config.json."""

    source: Annotated[str, tyro.conf.Positional]
    """.pt, .pth or .safetensors file, or hf://owner/repo/file"""
    folder: Annotated[Path, tyro.conf.Positional]
    """to be created"""
    kind: str = "auto"
    """tokenizer or generator; auto: a generator if the file holds one, as generator files hold their tokenizer too"""
    model: str | None = None
    """name of the configuration, where several fit"""

    def run(self) -> None:
        if self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise InputError(f"{self.folder}: is there already; name a folder that is to be created")
        path = locate(self.source)
        if path.is_dir():
            raise InputError(f"{path}: a folder; only files are converted, a native checkpoint is loaded as it is")
        config_type, state = self._read(path)
        config = self._choose(fitting_models(state.tensors, config_type), path)
        model = _build(config)
        load_authors_state(model, state, str(path))
        source = {"file": path.name, "sha256": file_sha256(path), "weights": state.place, "steps": state.steps}
        sha256 = save_checkpoint(self.folder, model, config, converted_from=source)
        print(f"{self.folder}: {_describe(config)}, weights '{state.place}' of {path.name}, sha256 {sha256}")

    def _read(self, path: Path) -> tuple[Any, State]:
        if self.kind not in ("auto", *KINDS):
            raise InputError(f"--kind {self.kind} is not auto, tokenizer or generator")
        if self.kind != "auto":
            return KINDS[self.kind], read_state(path, KINDS[self.kind])
        try:
            return GeneratorConfig, read_state(path, GeneratorConfig)
        except NoWeights:
            return TokenizerConfig, read_state(path, TokenizerConfig)

    def _choose(self, fitting: list[Config], path: Path) -> Config:
        names = [config.name for config in fitting]
        if self.model is not None:
            if self.model not in names:
                raise InputError(f"{path}: does not fit {self.model} (fits: {', '.join(names) or 'none of the zoo'})")
            return fitting[names.index(self.model)]
        if not fitting:
            raise InputError(f"{path}: fits no configuration of the zoo; load it with load_tokenizer and overrides")
        if len(fitting) > 1:
            raise InputError(f"{path}: fits {', '.join(names)} alike; say which with --model")
        return fitting[0]


def _build(config: Config) -> torch.nn.Module:
    return Tokenizer(config) if isinstance(config, TokenizerConfig) else Transformer(config)


def _fits(state: Mapping[str, torch.Tensor], config_type: Any) -> str:
    return " or ".join(map(_describe, fitting_models(state, config_type))) or "no known configuration"


def _describe(config: Config) -> str:
    if isinstance(config, TokenizerConfig):
        return f"{config.name} on {config.backbone}"
    return config.name


def main() -> int:
    """Exit code 0, or 2 after a line on what is wrong."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"convert": Convert, "inspect": Inspect}, prog="python -m imagefolder.checkpoints", description=__doc__
    )
    try:
        command.run()
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
