"""What surrounds the models: data loading, tokenizing a data set, feature extraction, the Frechet distance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from benchmark_models import DEVICES, tokenizer_of
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from imagefolder.data.digits import digits
from imagefolder.data.folder import read_data
from imagefolder.data.images import to_float
from imagefolder.data.order import ordered_batches
from imagefolder.evaluation.proxy import ProxyNet
from imagefolder.training.token_cache import build_token_cache


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """40 JPEG files of 400 x 500 in two classes, train and val."""
    root, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(20):
            folder = root / split / ("a" if index % 2 else "b")
            folder.mkdir(parents=True, exist_ok=True)
            smooth = random.integers(0, 255, (10, 8, 3), dtype=np.uint8)
            Image.fromarray(smooth).resize((400, 500)).save(folder / f"{index}.jpg", quality=95)
    return root


def test_load_images(measure, photographs):
    splits = read_data(photographs, 256)
    seen = measure(lambda: [len(labels) for _, labels in ordered_batches(splits.train, 10)], "load images", 20)
    assert sum(seen) == 20


def test_tokenize_a_data_set(measure, tmp_path):
    images, tokenizer = digits(32).train, tokenizer_of("mini-MSVR3P2-256", "cpu", "float32")
    folders = (tmp_path / str(number) for number in itertools.count())  # a cache is made once
    out = measure(
        lambda: build_token_cache(
            tokenizer, images, next(folders), tokenizer_sha256="0" * 64, views=1, title="encoding"
        ),
        "tokenize data set", len(images),
        model="mini-MSVR3P2-256", tokens=len(images) * 28,
    )  # fmt: skip
    assert len(out) == len(images)


@pytest.mark.parametrize("device", DEVICES)
def test_feature_extraction(measure, device):
    net, images = ProxyNet(10).to(device).eval(), to_float(digits(32).test.images[:400]).to(device)
    with torch.no_grad():
        features = measure(lambda: net(images)[0], "feature extraction", 400, device, model="proxy-cnn")
    assert len(features) == 400


@pytest.mark.parametrize("dimension", [64, 2048])
def test_frechet_distance(measure, dimension):
    """Statistics of 5,000 features and their distance to others."""
    torch.manual_seed(0)
    features = torch.randn(5000, dimension).relu()
    other = fid_features_to_statistics(torch.randn(5000, dimension).relu())
    distance = measure(
        lambda: fid_statistics_to_metric(fid_features_to_statistics(features), other, verbose=False),
        "Frechet distance", 5000, model=f"{dimension} features",
    )  # fmt: skip
    assert distance["frechet_inception_distance"] >= -1e-3
