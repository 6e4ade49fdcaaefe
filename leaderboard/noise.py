"""How much of the spread of a value comes from sampling, and how much from training, in words."""

from __future__ import annotations

from leaderboard.cells import number
from leaderboard.record import UNGUIDED_SUFFIX, Record
from leaderboard.significance import noise_parts
from leaderboard.tables import MetricKey, metric_key

PARTS = (
    "Sampling: the standard deviation over several sets of samples of one model, as a root mean square over the seeds; "
    "training: what is left of the variance over seeds without sampling's. With few seeds both are rough."
)
SAMPLED = "gFID"  # the end of the names of metrics whose `spread` is over several sets of samples of one model


def sampling_remarks(records: list[Record], labels: dict[MetricKey, str]) -> list[str]:
    """A sentence on the standard deviations of gFIDs over sets of samples of one model; none if there was one set."""
    ranges, sets = list[str](), set[int]()
    for key, label in _sampled(labels).items():
        spreads = sorted(spread for _, spread in _known(records, key))
        if spreads:
            ranges.append(f"{label} {'–'.join(dict.fromkeys(map(number, (spreads[0], spreads[-1]))))}")
            sets |= {n for r in records if isinstance(n := r.config.get("sampling_seeds"), int)}
    if not ranges:
        return []
    several = " or ".join(map(str, sorted(sets))) or "several"
    return [
        f"Sampling noise, the standard deviation over {several} sets of samples of one model: {', '.join(ranges)}. The "
        "± beside the values is over seeds of training and sampling together."
    ]


def training_remarks(groups: list[list[Record]], names: list[str], labels: dict[MetricKey, str]) -> list[str]:
    """A sentence for every kind of gFID on the rows with several seeds that were sampled several times, and `PARTS`.

    Args:
        groups: the records of each row, and `names`, the rows' labels.
    """
    remarks = []
    for key, label in _sampled(labels).items():
        rows = []
        for name, group in zip(names, groups, strict=True):
            known = _known(group, key)
            if len(known) < 2:
                continue
            training, sampling = noise_parts(*zip(*known, strict=True))
            share = number(training) if training else "not distinguishable from 0"
            rows.append(f"{name}: training {share}, sampling {number(sampling)} ({len(known)} seeds)")
        if rows:
            remarks.append(f"Spread of {label} over seeds, in two parts: {'; '.join(rows)}.")
    return [*remarks, PARTS] if remarks else []


def _sampled(labels: dict[MetricKey, str]) -> dict[MetricKey, str]:
    return {key: label for key, label in labels.items() if key[0].name.removesuffix(UNGUIDED_SUFFIX).endswith(SAMPLED)}


def _known(records: list[Record], key: MetricKey) -> list[tuple[float, float]]:
    """Values with their standard deviations over sets of samples, of the records that have both."""
    metrics = [m for r in records if r.status == "finished" for m in r.metrics if metric_key(m) == key]
    return [(m.value, m.spread) for m in metrics if m.spread is not None]
