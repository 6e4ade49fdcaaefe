"""FDr-6 (arXiv 2604.28190): by how much samples are further from the training images than validation images are.

It is the mean, over six feature spaces, of the Frechet distance of samples divided by that of the validation images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from imagefolder.evaluation.results import Measurement, Protocol, Result

VALIDATION = {
    "gFID": 1.68, "convnext-gFID": 56.87, "dinov2-gFID": 14.19, "mae-gFID": 0.04, "siglip-gFID": 0.60,
    "clip-gFID": 5.60,
}  # fmt: skip
"""Frechet distances of ImageNet's validation images, as published, by the names of our metrics."""
TOLERANCE = 0.1  # relative; 0.04 is rounded to 12 %, so that it also gets half of its last digit
ROUNDED = 0.005


def frechet_ratio(result: Result) -> Result:
    """FDr-6 of measured samples, or a note why it is not given; nothing if no published space was measured.

    All six distances must have been measured. Each space must also be the published one: the distance of the
    validation images measured here (the metric's floor) must be the published one, within `TOLERANCE`.
    """
    found = {m.protocol.name: m for m in result.measurements if m.protocol.name in VALIDATION}
    if "gFID" not in found:
        return Result([])
    absent = [name for name in VALIDATION if name not in found]
    if absent:
        return Result([], notes=[f"FDr-6 not measured: it needs {', '.join(absent)}"])
    if wrong := list(filter(None, (_wrong(name, found[name].floor) for name in VALIDATION if name != "gFID"))):
        return Result([], notes=[f"FDr-6 not given, each distance stands for itself: {'; '.join(wrong)}"])
    value = sum(found[name].value / VALIDATION[name] for name in VALIDATION) / len(VALIDATION)
    return Result([Measurement(_protocol(found), value, found["gFID"].n_real, found["gFID"].n_generated)])


def _wrong(name: str, floor: float | None) -> str | None:
    """Why a space is not known to be the published one."""
    published = VALIDATION[name]
    if floor is None:
        return f"{name} of the validation images is not known (published: {published})"
    if abs(floor - published) > TOLERANCE * published + ROUNDED:
        return f"{name} of the validation images is {floor:.4g}, not {published}, so the network is another one"
    return None


def _protocol(found: Mapping[str, Measurement]) -> Protocol:
    """Its extractor's hash covers those of all six."""
    hashes = "".join(str(found[name].protocol.extractor_sha256) for name in VALIDATION)
    divisors = ", ".join(f"{name} / {value}" for name, value in VALIDATION.items())
    return Protocol(
        name="FDr-6",
        version=1,
        description=f"mean of {divisors}, {found['gFID'].protocol.description}",
        reference=found["gFID"].protocol.reference,
        evaluator=found["gFID"].protocol.evaluator,
        extractor="six networks",
        extractor_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        higher_is_better=False,
    )
