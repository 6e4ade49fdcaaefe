"""Model cards: what each configuration of the zoo is and costs, computed from the configurations themselves.

`python -m imagefolder.cards MODELS.md` writes them.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imagefolder.checkpoints.loading import load_generator
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.generator.model import Generator
from imagefolder.generator.transformer import Cache
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import GENERATORS, REPORTED, TOKENIZER_OF, TOKENIZERS, Reported


@dataclass(frozen=True)
class Cost:
    """Floating-point operations per image, a multiply-add counted as two."""

    encode: float = 0.0
    decode: float = 0.0
    sample: float = 0.0


@functools.cache
def tokenizer_cost(config: TokenizerConfig) -> Cost:
    """Operations of a tokenizer."""
    with torch.device("meta"):
        tokenizer = Tokenizer(config).eval()
    images = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    tokens = torch.empty(1, config.branches, config.length, dtype=torch.int64, device="meta")
    return Cost(
        encode=count_flops(lambda: tokenizer.quantizer.encode(tokenizer.latents(images))),
        decode=count_flops(lambda: tokenizer.pixels(tokenizer.quantizer.decode(tokens))),
    )


def sampling_flops(generator: Generator, guided: bool = True) -> float:
    """Operations per sampled image: every block once with a key-value cache, twice under guidance, and the decoder.

    Those of a block grow linearly with the positions before it, so two counts per block size are enough.
    """
    transformer, config = generator.transformer, generator.config
    length, batch = transformer.sequence.length, 2 if guided else 1
    condition = transformer.condition(torch.zeros(batch, dtype=torch.int64, device=transformer.head.weight.device))
    embedding, layers, head = condition
    head_dim = config.width // config.heads

    @functools.cache
    def block_flops(size: int, before: int) -> float:
        cache = Cache(config.depth, batch, config.heads, length, head_dim, like=embedding)
        cache.filled = before
        inputs = embedding.new_empty(batch, size, config.branches * config.code_dim)
        embedded = transformer.embed(inputs, embedding, transformer.first, transformer.first + size)
        return count_flops(lambda: transformer.run(embedded, layers, head, cache=cache))

    total = count_flops(lambda: transformer.condition(embedding.new_zeros(batch, dtype=torch.int64)))
    for block in transformer.sequence.blocks:
        size = block.stop - block.start
        at_start, most = block_flops(size, 0), length - size
        total += at_start + (block_flops(size, most) - at_start) * block.start / max(most, 1)
    embedding_inputs = 2 * batch * (length - transformer.first) * config.branches * config.code_dim * config.width
    return total + embedding_inputs + tokenizer_cost(generator.tokenizer.config).decode


def count_flops(run: Callable[[], object]) -> float:
    """Operations of matrix products, convolutions and attention while `run` runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def tokenizer_row(config: TokenizerConfig) -> dict[str, str]:
    """Facts of a tokenizer by name."""
    with torch.device("meta"):
        tokenizer = Tokenizer(config).eval()
    cost, tokens = tokenizer_cost(config), config.branches * config.length
    return {
        "name": config.name,
        "image": f"{config.image_size} px",
        "backbone": config.backbone.split(".")[0] + _shape(config),
        "quantizer": _quantizer(config),
        "scales": " ".join(map(str, config.scales)),
        "positions": str(config.length),
        "tokens": str(tokens),
        "bits per image": f"{tokens * math.log2(config.codebook_size):,.0f}",
        "parameters": f"{parameters(tokenizer) / 1e6:.1f} M",
        "encode": _flops(cost.encode),
        "decode": _flops(cost.decode),
        **_reported(REPORTED.get(config.name)),
    }


def generator_row(config: GeneratorConfig) -> dict[str, str]:
    """Facts of a generator by name."""
    with torch.device("meta"):
        generator = load_generator(config.name, Tokenizer(TOKENIZERS[TOKENIZER_OF[config.name]]).eval(), device="meta")
    sequence, reported = generator.transformer.sequence, _reported(REPORTED.get(config.name))
    return {
        "name": config.name,
        "tokenizer": TOKENIZER_OF[config.name],
        "order": config.order,
        "depth x width": f"{config.depth} x {config.width}",
        "classes": str(config.num_classes),
        "positions": str(sequence.length),
        "passes": str(len(sequence.blocks)),
        "parameters": f"{parameters(generator.transformer) / 1e6:.1f} M",
        "sample": _flops(sampling_flops(generator)),
        "gFID": reported["gFID"],
        "source": reported["source"],
    }


def render() -> str:
    """All cards as Markdown."""
    tokenizers = [tokenizer_row(config) for config in TOKENIZERS.values()]
    generators = [generator_row(config) for config in GENERATORS.values()]
    parts = [_HEAD, "## Tokenizers\n", _table(tokenizers), "## Generators\n", _table(generators), "## Cards\n"]
    parts += [_card(row) for row in [*tokenizers, *generators]]
    return "\n".join(parts).rstrip() + "\n"


_HEAD = """# Models

Every named configuration (`imagefolder.list_models()`), generated by `python -m imagefolder.cards MODELS.md`.

- *tokens*: all branches; *positions*: per branch, which is the length of a folded sequence.
- *encode*, *decode*, *sample*: floating-point operations per image (a multiply-add counts as two) of matrix products,
  convolutions and attention. *sample* is with guidance (every position twice), key-value cache and decoder.
- *rFID*, *pFID*, *gFID*: as **reported** for the released weights on ImageNet 256 x 256, not measured here; empty: not
  published. Models without any have no released weights.
- The released weights are the authors', under a non-commercial licence. `python -m imagefolder.checkpoints convert`
  turns them into safetensors.
"""
_IN_TABLE = {"backbone", "scales", "image", "classes", "generator of the gFID", "source"}


def _table(rows: list[dict[str, str]]) -> str:
    columns = [column for column in rows[0] if column not in _IN_TABLE]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _card(row: dict[str, str]) -> str:
    facts = "\n".join(f"- {name}: {value}" for name, value in row.items() if value and name != "name")
    if row["name"] in TOKENIZERS:
        call = f'tokenizer = imagefolder.load_tokenizer("{row["name"]}", weights=...)'
    else:
        call = (
            f'tokenizer = imagefolder.load_tokenizer("{row["tokenizer"]}", weights=...)\n'
            f'generator = imagefolder.load_generator("{row["name"]}", tokenizer=tokenizer, weights=...)'
        )
    return f"### {row['name']}\n\n{facts}\n\n```python\n{call}\n```\n"


def _reported(reported: Reported | None) -> dict[str, str]:
    values = reported or Reported("")

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return {
        "rFID": text(values.rfid),
        "pFID": text(values.pfid),
        "gFID": text(values.gfid),
        "generator of the gFID": values.generator,
        "source": values.source,
    }


def _quantizer(config: TokenizerConfig) -> str:
    kind = {"vq": "vector", "bsq": "binary spherical", "lfq": "lookup-free"}[config.quantizer]
    shape = f"{config.codebook_size} x {config.code_dim}"
    return f"{kind}, {f'{config.branches} branches of ' if config.branches > 1 else ''}{shape}"


def _shape(config: TokenizerConfig) -> str:
    fields = {"width": config.width, "depth": config.depth, "heads": config.heads}
    given = ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
    return f" ({given})" if given else ""


def _flops(number: float) -> str:
    return f"{number / 1e9:.1f} GFLOP" if number >= 1e9 else f"{number / 1e6:.1f} MFLOP"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render())
