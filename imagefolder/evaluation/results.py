"""What an evaluation gives: values, each under its protocol."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from imagefolder.evaluation.extractor import Extractor


@dataclass(frozen=True)
class Protocol:
    """See `leaderboard.record.Protocol`, which has the same fields."""

    name: str
    version: int
    description: str
    reference: str
    evaluator: str
    extractor: str | None
    extractor_sha256: str | None
    higher_is_better: bool


@dataclass(frozen=True)
class Measurement:
    """One value under one protocol, with the number of images on both sides.

    `n_real`: images behind the reference, 0 where none are used (Inception score) or their number is not known.
    """

    protocol: Protocol
    value: float
    n_real: int
    n_generated: int
    spread: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Usage:
    """Codebook statistics of one branch at one scale over the test images."""

    branch: int
    scale: int
    position: int
    tokens: int
    used: float
    perplexity: float


@dataclass
class Result:
    """What an evaluation measured.

    `picture` uint8 (N, 3, H, W), the images to show; `notes` say what was not measured and why.
    """

    measurements: list[Measurement]
    picture: Tensor | None = None
    usage: list[Usage] = field(default_factory=list)
    samples_per_second: float = 0.0
    notes: list[str] = field(default_factory=list)


def feature_protocol(
    name: str, description: str, reference: str, extractor: Extractor, higher: bool, version: int = 1
) -> Protocol:
    """Protocol of a metric on an extractor's features; `name` begins with the extractor's prefix."""
    evaluator = extractor.evaluator
    return Protocol(name, version, description, reference, evaluator, extractor.name, extractor.sha256, higher)
