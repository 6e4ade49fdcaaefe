"""Results of an evaluation: values, each with its protocol."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from imagefolder.evaluation.extractor import Extractor
    from imagefolder.evaluation.neighbours import Neighbours


@dataclass(frozen=True)
class Protocol:
    """What a metric's name stands for; values are comparable only if their protocols are equal.

    Attributes:
        description: which images against which, in which order and format.
        reference: the real images.
        evaluator: program and version that computed the value.
        extractor: name of the feature extractor; None for pixel metrics.
    """

    name: str
    version: int
    description: str
    reference: str
    evaluator: str
    extractor: str | None
    extractor_sha256: str | None
    higher_is_better: bool

    @property
    def key(self) -> str:
        """The protocol in short, as in records, e.g. 'proxy-gFID@1/digits/train/proxy-cnn:ab12cd34'."""
        extractor = f"/{self.extractor}:{self.extractor_sha256[:8]}" if self.extractor and self.extractor_sha256 else ""
        return f"{self.name}@{self.version}/{self.reference}{extractor}"


@dataclass(frozen=True)
class Measurement:
    """One value under one protocol, with the number of images on both sides.

    Attributes:
        n_real: images behind the reference; 0 if there are none (Inception score) or their number is unknown.
        spread: standard deviation within the value, e.g. over splits.
        interval: 95 % bootstrap interval over images: how far other images of the same model would move the value.
        floor: the same metric between two sets of real images.
    """

    protocol: Protocol
    value: float
    n_real: int
    n_generated: int
    spread: float | None = None
    floor: float | None = None
    interval: tuple[float, float] | None = None


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
    """Everything measured by an evaluation.

    Attributes:
        picture: uint8 (N, 3, H, W), images to show.
        class_accuracies: of samples, by class; None for a class without samples.
        neighbours: the training image that is nearest to each sample, in the main feature space.
        nearest: uint8 (2 N, 3, H, W), the samples nearest to a training image, each followed by it.
        notes: what was not measured, and why.
    """

    measurements: list[Measurement]
    picture: Tensor | None = None
    class_accuracies: list[float | None] = field(default_factory=list)
    neighbours: Neighbours | None = None
    nearest: Tensor | None = None
    usage: list[Usage] = field(default_factory=list)
    samples_per_second: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Result) -> Result:
        """This one with another's measurements and notes."""
        return replace(self, measurements=self.measurements + other.measurements, notes=self.notes + other.notes)


def feature_protocol(
    name: str, description: str, reference: str, extractor: Extractor, higher: bool, version: int = 1
) -> Protocol:
    """Protocol of a metric on an extractor's features; `name` begins with the extractor's prefix."""
    evaluator = extractor.evaluator
    return Protocol(name, version, description, reference, evaluator, extractor.name, extractor.sha256, higher)
