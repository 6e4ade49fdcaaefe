"""Realistic records that need no training."""

from __future__ import annotations

from pathlib import Path

from leaderboard.record import Checkpoint, CodebookUsage, Cost, Dataset, Metric, Protocol, Record, Run, Size

EXTRACTOR_SHA256 = "ab12cd34" * 8
REPORTED_CSV = Path(__file__).parents[2] / "reproductions/reported/imagenet256.csv"


def make_protocol(name: str = "proxy-gFID", **changes: object) -> Protocol:
    values = {
        "name": name,
        "version": 1,
        "description": f"{name}: generated PNG images against real ones",
        "reference": "digits/train" if "gFID" in name else "digits/test",
        "evaluator": "torch-fidelity 0.4.0",
        "extractor": "proxy-cnn" if name.startswith("proxy") else None,
        "extractor_sha256": EXTRACTOR_SHA256 if name.startswith("proxy") else None,
        "higher_is_better": "FID" not in name,
    }
    return Protocol(**(values | changes))


def make_metric(name: str, value: float, floor: float | None = None, **changes: object) -> Metric:
    return Metric(protocol=make_protocol(name, **changes), value=value, n_real=1437, n_generated=1000, floor=floor)


def make_record(row: str = "imagefolder", seed: int = 0, gfid: float = 2.5, **changes: object) -> Record:
    """A finished record of table2 at scale mini; `changes` replaces any of its fields."""
    positions = {"imagefolder": 30, "var": 60}.get(row, 30)
    values = {
        "table": "table2",
        "row": row,
        "label": {"imagefolder": "ImageFolder (folded)", "var": "VAR (not folded)"}.get(row, row),
        "note": f"The row {row}: one sentence on what it is and how it differs from its neighbours.",
        "scale": "mini",
        "seed": seed,
        "status": "finished",
        "config": {"tokenizer": {"branches": 2, "width": 64}, "row": row, "seed": seed},
        "config_sha256": f"{seed + 1}c" * 32,
        "dataset": Dataset(
            name="digits", sha256="d1" * 32, n_train=1437, n_test=360, classes=10, image_size=16
        ),
        "size": Size(
            tokens=60, positions=positions, steps=4, bits=480.0,
            tokenizer_parameters=412_345, generator_parameters=1_234_567,
        ),
        "checkpoints": [
            Checkpoint(role="tokenizer", path=f"checkpoints/{row}/tokenizer.safetensors", sha256="77" * 32,
                       selection="EMA weights of the last step")
        ],
        "metrics": [
            make_metric("proxy-rFID", 1.5 + gfid / 10, floor=0.4),
            make_metric("PSNR", 21.3 + gfid),
            make_metric("SSIM", 0.87),
            make_metric("proxy-gFID", gfid, floor=0.31),
            make_metric("proxy-IS", 8.1),
            make_metric("precision", 0.71),
            make_metric("class accuracy", 0.953),
        ],
        "codebook_usage": [
            CodebookUsage(
                branch=branch, scale=side, position=i, tokens=360 * side * side,
                used=(i + 1) / 5 + branch / 10, perplexity=20.0 + side,
            )
            for branch in range(2) for i, side in enumerate((1, 2, 3, 4))
        ],
        "pictures": {"reconstructions": f"pictures/{row}-{seed}-r.png", "samples": f"pictures/{row}-{seed}-s.png"},
        "cost": Cost(
            tokenizer_train_seconds=61.5, generator_train_seconds=33.25 + seed, evaluation_seconds=4.0,
            samples_per_second=123.4 + positions, sample_batch=100, tokenizer_shared=False, peak_memory_mib=812.5,
            alone=True, threads=2,
        ),
        "run": Run(
            started=f"2026-01-02T03:0{seed}:00Z", finished=f"2026-01-02T03:1{seed}:00Z",
            command=f"python reproductions/table2.py --seeds {seed}", git_commit="0123456789abcdef" * 2, git_dirty=True,
            packages={"torch": "2.9.0", "torch-fidelity": "0.4.0"}, python="3.11.7", platform="Linux x86_64",
            cpu="Example CPU @ 2 GHz", threads=2, gpu=None, memory_gib=8.0,
        ),
    }  # fmt: skip
    return Record(**(values | changes))


def make_failed(row: str = "lfq", seed: int = 0, reason: str = "loss is not finite at step 120") -> Record:
    nothing = {"size": None, "checkpoints": [], "metrics": [], "codebook_usage": [], "pictures": {}, "cost": None}
    return make_record(row, seed, status="failed", reason=reason, **nothing)
