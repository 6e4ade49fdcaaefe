"""How guidance, top-k, top-p and temperature move FID and IS: a sweep over the generators of Table 2.

python reproductions/guidance.py --seeds 0 1 2 3 4

The models are those of table2.py: trained ones in the output folder are used, missing ones are trained. Guidance is
swept at the scale's top-k, top-p and temperature 1; then, one at a time, the other settings are varied at the guidance
that gave the lowest gFID. Running it again measures only what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from imagefolder.config import UNGUIDED
from reproductions import table2
from reproductions.options import Options, run_script
from reproductions.recipe import Recipe, Table, usual_sampling
from reproductions.scales import Scale

if TYPE_CHECKING:
    from leaderboard.record import Record

GUIDANCES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5)
TOP_PS, TEMPERATURES = (0.0, 0.9), (0.8, 0.9, 1.1)
TOP_K_SHARE = 4  # the codebook's size is divided by it, where the scale keeps all tokens
WORDS = {"guidance": "guidance", "top_k": "top-k", "top_p": "top-p", "temperature": "temperature"}


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Every generator at every guidance, and as the model predicts; the scale's own settings are among them."""
    found = []
    for generator in table2.rows(scale, classes):
        usual = usual_sampling(generator, scale)
        for guidance in sorted({*GUIDANCES, usual.guidance}):
            own = guidance == usual.guidance
            name = "default" if own else f"g{guidance:g}"
            found.append(_row(generator, name, {"guidance": guidance}, "the scale's own settings" if own else ""))
        found.append(_row(generator, "unguided", UNGUIDED, "as the model predicts"))
    return found


def variations(scale: Scale, classes: int, chosen: Mapping[str, float]) -> list[Recipe]:
    """The other settings, one at a time, at the guidance `chosen` for each generator, by its row in Table 2."""
    found = []
    for generator in table2.rows(scale, classes):
        if generator.row not in chosen:
            continue
        guidance, usual = chosen[generator.row], usual_sampling(generator, scale)
        top_k = 0 if usual.top_k else generator.tokenizer.codebook_size // TOP_K_SHARE
        varied = [("top_k", top_k), *(("top_p", p) for p in TOP_PS), *(("temperature", t) for t in TEMPERATURES)]
        for field, value in varied:
            setting = {"guidance": guidance, field: value}
            found.append(_row(generator, f"g{guidance:g}-{field}{value:g}", setting))
    return found


TABLE = Table("guidance", "Sampling settings: guidance, top-k, top-p and temperature", rows)


def best_guidance(records: list[Record]) -> dict[str, float]:
    """The guidance with the lowest gFID of each generator, by its row in Table 2: of the mean over seeds, in the first
    feature space; only settings that all seeds have measured."""
    values: dict[str, dict[float, list[float]]] = {}
    for record in records:
        generator, _, setting = record.row.partition("-")
        if setting == "default" or (setting.startswith("g") and "-" not in setting):
            value = next(m.value for m in record.metrics if m.protocol.metric == "gFID")
            values.setdefault(generator, {}).setdefault(record.config["sampling"]["guidance"], []).append(value)
    best = {}
    for generator, found in values.items():
        most = max(map(len, found.values()))
        means = {guidance: fmean(each) for guidance, each in found.items() if len(each) == most}
        best[generator] = min(means, key=lambda guidance: means[guidance])
    return best


def with_variations(options: Options) -> Table | None:
    """The table with variations around the best guidance among its records; None if there are none."""
    from imagefolder.distributed import gather_objects
    from reproductions.plan import plan_rows
    from reproductions.recording import finished_record

    found = (finished_record(plan.row) for plan in plan_rows(TABLE, options))
    best = gather_objects(best_guidance([record for record in found if record is not None]))[0]
    if not best:
        return None
    return replace(TABLE, rows=lambda scale, classes: rows(scale, classes) + variations(scale, classes, best))


def main() -> None:
    """Entry point."""
    run_script(TABLE, then=with_variations)


def _row(generator: Recipe, name: str, sampling: dict[str, Any], note: str = "") -> Recipe:
    words = ", ".join(f"{WORDS[field]} {value:g}" for field, value in sampling.items())
    return replace(
        generator,
        row=f"{generator.row}-{name}",
        label=f"{generator.label} · {words}",
        note=f"{generator.label} sampled with {words}{f' ({note})' if note else ''}",
        reported=None,
        measures=("generation",),
        sampling=sampling,
    )


if __name__ == "__main__":
    main()
