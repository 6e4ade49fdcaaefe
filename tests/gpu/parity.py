"""The recorded generator (tests/parity) on this device, in float32 with torch's default settings."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

import imagefolder
from imagefolder.checkpoints.authors import translate
from imagefolder.config import GeneratorConfig, TokenizerConfig
from tests.gpu.item import Outcome
from tests.gpu.lab import Lab

FOLDER = Path(__file__).parent.parent / "parity"
TOKENIZER, GENERATOR = "tok_small_MSVR10P2-4096", "ar_d4_small_MSVR10P2-4096"
MOST_DEVIATION, LEAST_EQUAL = 1e-3, 0.999


def generator(lab: Lab) -> Outcome:
    """Logits with teacher forcing, and greedy samples, beside those of the reference implementation."""
    sys.path.insert(0, str(FOLDER))  # as pytest does for the tests there
    from recorded import BACKBONE, TEACHER, authors_state, deviation

    recorded, case = np.load(FOLDER / f"{GENERATOR}.npz"), json.loads((FOLDER / f"{GENERATOR}.json").read_text())
    shapes = json.loads((FOLDER / f"{TOKENIZER}.json").read_text())["state_dict"]
    weights = translate(
        authors_state({name: shape for name, shape in shapes.items() if not name.startswith(TEACHER)}), TokenizerConfig
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that weights are random: they are replaced
        tokenizer = imagefolder.load_tokenizer("MSVR10P2-4096", backbone=BACKBONE)
        tokenizer.load_state_dict(tokenizer.state_dict() | weights)
        model = imagefolder.load_generator("VAR-d17-MSVR10P2-4096", tokenizer, depth=4)
    weights = translate(authors_state(case["state_dict"], prefix="var."), GeneratorConfig)
    model.transformer.load_state_dict(weights)
    model.to(lab.device)
    labels = torch.from_numpy(recorded["labels"]).to(lab.device)
    tokens = torch.from_numpy(np.load(FOLDER / f"{TOKENIZER}.npz")["tokens"]).long()
    with torch.no_grad():
        logits = model(labels, tokens).permute(0, 2, 1, 3).flatten(2).cpu()
    of_logits = deviation(logits[:, recorded["pos"]][:, :, recorded["voc"]], recorded["logits_sub"])
    out = model.sample(labels, guidance=case["cfg"], top_k=case["top_k"])
    equal = float((out.tokens.cpu().numpy() == recorded["greedy_tokens"]).mean())
    of_images = deviation(out.images.cpu(), recorded["greedy_image"])
    return Outcome(
        f"logits differ by {of_logits:.1e}, images by {of_images:.1e}; {equal:.2%} of the greedy tokens are equal",
        goal=f"{MOST_DEVIATION:.0e} of the standard deviation, {LEAST_EQUAL:.1%}",
        met=of_logits < MOST_DEVIATION and of_images < MOST_DEVIATION and equal >= LEAST_EQUAL,
        numbers={"logits": of_logits, "equal": equal, "images": of_images},
    )
