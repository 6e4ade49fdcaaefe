"""Model cards for the hub: what a model is, how to load it and, if its results are known, what it scored."""

from __future__ import annotations

import math
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from imagefolder.config import Config, TokenizerConfig
from imagefolder.kinds import QUANTIZERS

PAPER = "https://arxiv.org/abs/2410.01756"
TAGS = ["image-generation", "image-tokenizer", "arxiv:2410.01756"]
FOLDER = "path/to/this/folder"  # stands for the model where its repository is not known
OTHER = "other"

# Jinja, with blank lines where Markdown needs them
_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ summary }}

| | |
|---|---|
{% for fact, value in facts.items() -%}
| {{ fact }} | {{ value }} |
{% endfor %}
## Use

```python
{{ code }}
```
{% if results %}
## Results

{{ results }}
{% endif %}
## Licence

{{ licence }}

## Source

Method: [ImageFolder: Autoregressive Image Generation with Folded Tokens]({{ paper }}). Made with
`imagefolder`, an independent implementation of it (Python package `imagefolder-repro`).

"""  # Jinja removes the last line break
_LICENCES = {
    OTHER: "Weights converted from the files of the paper's authors stay under the authors' non-commercial terms. "
    "Whoever trained these weights decides about the licence of any others."
}


def model_card(
    config: Config,
    *,
    repo: str = FOLDER,
    license: str = OTHER,
    results: str = "",
    evaluated: list[EvalResult] | None = None,
) -> ModelCard:
    """The model card of a tokenizer or generator.

    Args:
        config: of the model.
        repo: `owner/name` on the hub, or a folder, for the code that loads it.
        license: by its name on the hub.
        results: Markdown about measured values.
        evaluated: the same values for the card's model-index.
    """
    is_tokenizer = isinstance(config, TokenizerConfig)
    values: dict[str, Any] = {"model_name": config.name, "eval_results": evaluated} if evaluated else {}
    if license == OTHER:
        values |= {"license_name": "see-model-card", "license_link": "README.md"}
    data = ModelCardData(
        library_name="imagefolder",
        license=license,
        pipeline_tag="image-feature-extraction" if is_tokenizer else "unconditional-image-generation",
        tags=sorted(TAGS),
        **values,
    )
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        name=config.name,
        summary=_tokenizer_summary(config) if is_tokenizer else _GENERATOR_SUMMARY,
        facts=_facts(config),
        code=_TOKENIZER_CODE.format(repo=repo) if is_tokenizer else _GENERATOR_CODE.format(repo=repo),
        results=results,
        licence=_LICENCES.get(license, f"The weights are licensed under {license}."),
        paper=PAPER,
    )


_GENERATOR_SUMMARY = (
    "A class-conditional generator of images: a transformer that predicts the tokens of an image tokenizer. It works "
    "with the tokenizer it was trained on, and with no other."
)
_TOKENIZER_CODE = """import imagefolder

tokenizer = imagefolder.Tokenizer.from_pretrained("{repo}")
tokens = tokenizer.encode(images)  # images float32 (B, 3, H, W) in [-1, 1]
images = tokenizer.decode(tokens)"""
_GENERATOR_CODE = """import imagefolder

tokenizer = imagefolder.Tokenizer.from_pretrained("path/to/its/tokenizer")  # the one it was trained on
generator = imagefolder.Generator.from_pretrained("{repo}", tokenizer=tokenizer)
samples = generator.sample([0, 1, 2], seed=0).images  # float32 (3, 3, H, W) in [0, 1]"""


def _tokenizer_summary(config: TokenizerConfig) -> str:
    branches = f"{config.branches} branches of tokens" if config.branches > 1 else "one branch of tokens"
    return f"An image tokenizer: it turns an image into {branches}, and tokens back into an image."


def _facts(config: Config) -> dict[str, str]:
    """What decides the size of a model, by name."""
    facts = {
        "tokens per image": f"{config.branches * sum(side * side for side in config.scales):,}",
        "branches": str(config.branches),
        "token maps": ", ".join(f"{side} × {side}" for side in config.scales),
        "codebook": f"{config.codebook_size:,} codes of {config.code_dim} dimensions",
    }
    if isinstance(config, TokenizerConfig):
        facts |= {
            "images": f"{config.image_size} × {config.image_size} pixels",
            "quantizer": QUANTIZERS[config.quantizer].title,
            "backbone": config.backbone,
            "bits per image": f"{config.branches * config.length * math.log2(config.codebook_size):,.0f}",
        }
    else:
        facts |= {
            "order": config.order,
            "transformer": f"{config.depth} layers of width {config.width}, {config.heads} heads",
            "classes": f"{config.num_classes:,}",
        }
    return facts
