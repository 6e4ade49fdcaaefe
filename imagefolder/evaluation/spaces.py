"""The feature spaces that are measured. A new one is a module that makes an `Extractor`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from imagefolder.distributed import is_main
from imagefolder.evaluation.backbones import DINO_SPACE, OTHER_SPACES, backbone_extractor
from imagefolder.evaluation.clean import clean_extractor
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.inception import inception_extractor
from imagefolder.evaluation.lite import lite_extractor
from imagefolder.evaluation.proxy import proxy_extractor
from imagefolder.evaluation.reference import adm_file
from imagefolder.progress import console
from imagefolder.weights import CLEAN_INCEPTION, INCEPTION, LITE0, WeightsAbsent, absent_weights

PROXY_SPACES: list[Callable[[Path], Extractor]] = [proxy_extractor]
"""Spaces of scales without published weights, the main one first. They get the weight file of the data's proxy."""


@dataclass(frozen=True)
class PublishedSpace:
    """A space of scales with published weights; an `optional` one is skipped if its file `weights` is absent."""

    name: str
    open: Callable[[], Extractor]
    weights: str
    optional: bool = False


PUBLISHED_SPACES = [
    PublishedSpace("Inception", inception_extractor, INCEPTION),
    PublishedSpace("clean-fid", clean_extractor, CLEAN_INCEPTION, optional=True),
]
"""The main one first."""

FURTHER_SPACES = {
    False: [PublishedSpace("EfficientNet-Lite0", lite_extractor, LITE0, optional=True)],
    True: [
        PublishedSpace(backbone.timm, partial(backbone_extractor, backbone), backbone.timm, optional=True)
        for backbone in (DINO_SPACE, *OTHER_SPACES)
    ],
}
"""Measured by the tables in addition, where their weights are on the machine: at scales with proxies, and at those with
published weights. They compare with the training images of the data, measured once (`reproductions.further`)."""

NAMED = {"inception": inception_extractor, "lite0": lite_extractor, "dinov2": partial(backbone_extractor, DINO_SPACE)}
"""By the names that commands and `evaluate` know; anything else is the file of a proxy."""


def named_extractor(name: str | Path) -> Extractor:
    """An extractor of `NAMED`, or the proxy in a file; raises as the function that opens it does."""
    return NAMED[str(name)]() if str(name) in NAMED else proxy_extractor(Path(name))


def further_extractors(published: bool) -> list[Extractor]:
    """Those of `FURTHER_SPACES` whose weights are on this machine; `InputError` if they are damaged."""
    return [space.open() for space in FURTHER_SPACES[published] if not absent_weights([space.weights])]


def absent_spaces(published: bool) -> list[str]:
    """One line for each of `FURTHER_SPACES` that cannot be measured on this machine: which weights it needs."""
    return [
        f"{space.name} is not measured: {line}"
        for space in FURTHER_SPACES[published]
        for line in absent_weights([space.weights])
    ]


def extractors_for(proxy: Path | None, floors: dict[str, float] | None = None) -> list[Extractor]:
    """The extractors to evaluate with; optional ones whose weights are absent are skipped with a note on the console.

    Args:
        proxy: weight file of the data's proxy extractor; None to measure the published metrics.
        floors: values of metrics between real images, by full name.

    Raises:
        WeightsAbsent, InputError: an extractor cannot be loaded.
    """
    if proxy is not None:
        return [replace(make(proxy), floors=floors or {}) for make in PROXY_SPACES]
    extractors = []
    for space in PUBLISHED_SPACES:
        try:
            extractors.append(space.open())
        except WeightsAbsent as error:
            if not space.optional:
                raise
            if is_main():
                console.print(f"{space.name} not measured: {error}")
    return extractors


def main_extractor(proxy: Path | None) -> Extractor:
    """The first of `extractors_for`, by which tokenizers are selected, without loading the others."""
    return PUBLISHED_SPACES[0].open() if proxy is None else PROXY_SPACES[0](proxy)


def required_weights(samples: bool) -> list[str]:
    """The files that `extractors_for(None)` requires and, with samples, the reference they are compared with."""
    return [space.weights for space in PUBLISHED_SPACES if not space.optional] + [adm_file()] * samples
