"""Given the same weights, our models match the reference implementation."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import BACKBONE, HERE, TEACHER, authors_state, deviation, teacher_of, write_tokenizer
from synthetic_weights import tensor_for

import imagefolder
from imagefolder.tokenizer.losses import semantic_loss


@pytest.fixture(scope="module")
def tokenizer_case(tmp_path_factory):
    case = json.loads((HERE / "tok_small_MSVR10P2-4096.json").read_text())
    recorded = dict(np.load(HERE / "tok_small_MSVR10P2-4096.npz"))
    path = write_tokenizer(tmp_path_factory.mktemp("authors") / "best_ckpt.pt", authors_state(case["state_dict"]))
    # Recorded with the later release, which sums the commitment loss over the scales
    options = {"backbone": BACKBONE, "commitment_over_scales": "sum"}
    tokenizer = imagefolder.load_tokenizer("MSVR10P2-4096", weights=path, **options)
    images = torch.from_numpy(recorded["image"]).float() / 127.5 - 1
    return case, recorded, tokenizer, images


@pytest.fixture(scope="module")
def generator_case(tokenizer_case, tmp_path_factory):
    _, _, tokenizer, images = tokenizer_case
    case = json.loads((HERE / "ar_d4_small_MSVR10P2-4096.json").read_text())
    recorded = dict(np.load(HERE / "ar_d4_small_MSVR10P2-4096.npz"))
    path = tmp_path_factory.mktemp("authors") / "ar-ckpt-last.pth"
    state = authors_state(case["state_dict"], prefix="var.")
    torch.save({"trainer": {"var_wo_ddp": state}, "epoch": 3, "args": argparse.Namespace(depth=4)}, path)
    generator = imagefolder.load_generator("VAR-d17-MSVR10P2-4096", tokenizer=tokenizer, weights=path, depth=4)
    return case, recorded, generator, tokenizer.encode(images)


def test_tokenizer(tokenizer_case):
    _, recorded, tokenizer, images = tokenizer_case
    with torch.no_grad():
        latents = tokenizer.latents(images)
    assert deviation(latents.flatten(3).movedim(1, 2).flatten(2), recorded["latent"][..., 0]) < 1e-3
    tokens = tokenizer.encode(images)
    assert (tokens.numpy() == recorded["tokens"]).mean() >= 0.999
    assert deviation(tokenizer.quantizer.decode(tokens), recorded["f_hat"]) < 1e-3
    assert deviation(tokenizer.decode(tokens), recorded["recon"]) < 1e-3


def test_tokenizer_losses(tokenizer_case):
    case, _, tokenizer, images = tokenizer_case
    shapes = {name: shape for name, shape in case["state_dict"].items() if name.startswith(TEACHER)}
    teacher = teacher_of({name: tensor_for(name, shape) for name, shape in shapes.items()})
    with torch.no_grad():
        output = tokenizer(images, semantic=teacher(images))
        semantic = 0.1 * semantic_loss(*output.semantic)
    losses = case["losses"]
    assert float(output.quantized.codebook_loss) == pytest.approx(losses["vq_loss"], rel=1e-4)
    assert float(output.quantized.commitment_loss) == pytest.approx(losses["commit_loss"], rel=1e-4)
    assert float(semantic) == pytest.approx(losses["semantic_loss"], rel=1e-4)


def test_binary_tokenizer(tmp_path):
    case = json.loads((HERE / "tok_bsq4096.json").read_text())
    recorded = dict(np.load(HERE / "tok_bsq4096.npz"))
    path = write_tokenizer(tmp_path / "best_ckpt.pt", authors_state(case["state_dict"]))
    tokenizer = imagefolder.load_tokenizer("MSBR10P2-4096", weights=path, backbone=BACKBONE)
    tokens = tokenizer.encode(torch.from_numpy(recorded["image"]).float() / 127.5 - 1)
    assert (tokens.numpy() == recorded["tokens"]).mean() >= 0.999
    recorded_tokens = torch.from_numpy(recorded["tokens"]).long()
    assert deviation(tokenizer.quantizer.decode(recorded_tokens), recorded["f_hat"]) < 1e-3
    assert deviation(tokenizer.decode(recorded_tokens)[:, :, ::4, ::4], recorded["recon"]) < 1e-3


def test_generator_with_teacher_forcing(generator_case):
    case, recorded, generator, tokens = generator_case
    labels = torch.from_numpy(recorded["labels"])
    inputs = generator.transformer.sequence.inputs(generator.tokenizer.quantizer, tokens)
    assert deviation(inputs, recorded["var_input"]) < 1e-3
    with torch.no_grad():
        logits = generator(labels, tokens)
    by_position = logits.permute(0, 2, 1, 3).flatten(2)
    assert deviation(by_position[:, recorded["pos"]][:, :, recorded["voc"]], recorded["logits_sub"]) < 1e-3
    for branch, expected in enumerate(case["ce_per_branch"]):
        loss = F.cross_entropy(logits[:, branch].flatten(0, 1), tokens[:, branch].flatten())
        assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_greedy_samples(generator_case):
    case, recorded, generator, _ = generator_case
    out = generator.sample(torch.from_numpy(recorded["labels"]), guidance=case["cfg"], top_k=case["top_k"])
    assert (out.tokens.numpy() == recorded["greedy_tokens"]).mean() >= 0.999
    assert deviation(out.images, recorded["greedy_image"]) < 1e-3
