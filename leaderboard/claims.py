"""The paper's comparative claims as data: which row differs from which other row, in which metric and direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FEATURES = ("continuous", "quantized")
PROBES = tuple(f"linear probe accuracy ({features})" for features in FEATURES)

Direction = Literal["lower", "higher", "half"]


@dataclass(frozen=True)
class Pair:
    """Two rows of one table that test a claim; the claim is about the first."""

    table: str
    row: str
    other: str


@dataclass(frozen=True)
class Claim:
    """One comparative claim of the paper."""

    key: str
    text: str
    source: str
    pairs: tuple[Pair, ...]
    """the first pair with values in both rows decides"""
    metric: str
    """published name of a metric, or "positions" or "samples_per_second", which have no protocol"""
    direction: Direction
    """of the first row, compared with the other"""
    equal: Literal["positions", "tokens", "bits"] | None = None
    """the size that both rows must share"""
    reported: tuple[str, str] | None = None
    """names of the two systems among the reported ones"""
    paper: str = "number not known"
    """what the paper reports instead of a pair of numbers"""


README = "ablation table of the authors' README"
REVIEW = "fourth review of the submission"


def _step(
    number: int, text: str, direction: Literal["lower", "higher"] = "lower", equal: Literal["positions"] | None = None
) -> list[Claim]:
    """The claims about one step of the ablation, compared with the previous step."""
    return [
        Claim(
            key=f"ablation-{number}-{metric}",
            text=text.format(metric),
            source=f"{README}, row {number} against row {number - 1}",
            pairs=(Pair("ablation", f"step{number}", f"step{number - 1}"),),
            metric=metric,
            direction=direction,
            equal=equal,
            reported=_steps(number),
        )
        for metric in ("rFID", "gFID")
    ]


def _probe(number: int, what: str) -> list[Claim]:
    """Linear probing of one step, compared with the previous step; the paper does not state which features it uses."""
    pair = f"step{number}", f"step{number - 1}"
    return [
        Claim(
            key=f"probe-{number}-{features}",
            text=f"{what} raises the linear probe's accuracy ({features} features)",
            source=f"{README}, row {number} against row {number - 1}; it does not state which features",
            pairs=(Pair("ablation", *pair), Pair("linear_probe", *pair)),
            metric=metric,
            direction="higher",
            reported=_steps(number),
        )
        for features, metric in zip(FEATURES, PROBES, strict=True)
    ]


def _steps(number: int) -> tuple[str, str]:
    return f"ImageFolder ablation A{number}", f"ImageFolder ablation A{number - 1}"


def _var(metric: str) -> Claim:
    return Claim(
        key=f"table2-var-{metric}",
        text=f"ImageFolder has a lower {metric} than VAR",
        source="system comparison: ImageFolder against VAR-d16 as printed in the VAR paper",
        pairs=(Pair("table2", "imagefolder", "var"),),
        metric=metric,
        direction="lower",
        reported=("ImageFolder (VAR-d17, MSVR10P2-4096)", "VAR-d16 (paper)"),
    )


FOLDED = (Pair("folding", "folded", "unfolded"), Pair("table2", "imagefolder", "unfolded"))

CLAIMS: tuple[Claim, ...] = (
    _var("rFID"),
    _var("gFID"),
    Claim(
        key="folding-positions",
        text="A folded sequence is half an unfolded one at equal tokens",
        source="abstract; the author's answer on lengths (issue 5 of the repository)",
        pairs=FOLDED,
        metric="positions",
        direction="half",
        equal="tokens",
        paper="286 positions for 2 × 286 tokens",
    ),
    Claim(
        key="folding-speed",
        text="Folded tokens are sampled faster than the same tokens unfolded",
        source="abstract: both tokens of a position are predicted in parallel",
        pairs=FOLDED,
        metric="samples_per_second",
        direction="higher",
        equal="tokens",
    ),
    Claim(
        key="folding-gFID",
        text="Folded tokens generate better than the same tokens unfolded",
        source="abstract; third review of the submission",
        pairs=FOLDED,
        metric="gFID",
        direction="lower",
        equal="tokens",
    ),
    Claim(
        key="folding-one-branch-gFID",
        text="A shorter sequence generates better at equal tokens: two folded branches against one branch",
        source=f"{REVIEW}, question 9",
        pairs=(Pair("folding", "folded", "one-branch"),),
        metric="gFID",
        direction="lower",
        equal="tokens",
    ),
    *_step(2, "Quantizer dropout lowers {}"),
    *_step(3, "A smaller K alone raises {}", "higher"),
    *_step(4, "Product quantization with parallel decoding lowers {} at equal length", equal="positions"),
    *_step(5, "Semantic regularisation of all branches lowers {}", equal="positions"),
    *_step(6, "Regularising one branch instead of all lowers {}", equal="positions"),
    *_step(7, "A stronger discriminator lowers {}", equal="positions"),
    *_step(8, "Equilibrium enhancement lowers {}", equal="positions"),
    *_probe(7, "A stronger discriminator"),
    *_probe(8, "Equilibrium enhancement"),
    Claim(
        key="length-rFID",
        text="A longer sequence reconstructs better",
        source="study of token length (abstract)",
        pairs=(Pair("token_length", "longest", "shorter"),),
        metric="rFID",
        direction="lower",
    ),
    Claim(
        key="length-gFID",
        text="A longer sequence does not generate better: gFID rises beyond the released length",
        source="study of token length (abstract)",
        pairs=(Pair("token_length", "longest", "released"),),
        metric="gFID",
        direction="higher",
    ),
    Claim(
        key="branches-gFID",
        text="Four branches generate worse than two at equal bits",
        source=f"implied by the {REVIEW}, question 6",
        pairs=(Pair("branches", "branches4", "branches2"),),
        metric="gFID",
        direction="higher",
        equal="bits",
    ),
)
