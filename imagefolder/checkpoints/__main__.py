"""`python -m imagefolder.checkpoints convert FILE FOLDER`: the authors' files into native checkpoints."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from imagefolder.checkpoints.authors import Config, NoWeights, State, fitting_models, load_authors_state, read_state
from imagefolder.checkpoints.hub import locate
from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.files import file_sha256
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer

KINDS = {"tokenizer": TokenizerConfig, "generator": GeneratorConfig}


@dataclass
class Inspect:
    """Say what weights one of the authors' files holds, and which configurations they fit."""

    source: Annotated[str, tyro.conf.Positional]
    """.pt, .pth or .safetensors file, or hf://owner/repo/file"""

    def run(self) -> None:
        path = locate(self.source)
        for kind, config_type in KINDS.items():
            try:
                state = read_state(path, config_type)
            except NoWeights:
                print(f"{kind}: none")
                continue
            names = [_describe(config) for config in fitting_models(state.tensors, config_type)]
            steps = "" if state.steps is None else f", {state.steps} steps"
            fits = " or ".join(names) or "no known configuration"
            print(f"{kind}: {len(state.tensors)} tensors (from '{state.place}'{steps}), fits {fits}")


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
        path = locate(self.source)
        config_type, state = self._read(path)
        config = self._choose(fitting_models(state.tensors, config_type), path)
        model = Tokenizer(config) if isinstance(config, TokenizerConfig) else Transformer(config)
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
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
