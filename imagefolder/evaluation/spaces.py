"""The feature spaces that are measured. A new one is a module that makes an `Extractor`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from imagefolder.distributed import is_main
from imagefolder.evaluation.clean import clean_extractor
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.inception import inception_extractor
from imagefolder.evaluation.proxy import proxy_extractor
from imagefolder.evaluation.reference import adm_file
from imagefolder.progress import console
from imagefolder.weights import CLEAN_INCEPTION, INCEPTION, WeightsAbsent

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
