"""clean-fid's Inception: the same network on images resized with antialiasing and without rounding."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import torch
from torch import Tensor

from imagefolder.evaluation.extractor import Extractor, Widths, default_device
from imagefolder.weights import CLEAN_INCEPTION, FILES, require

VERSION = f"clean-fid {metadata.version('clean-fid')}"


def clean_extractor() -> Extractor:
    """The extractor of clean-fid's "clean" mode, for reconstructions only: samples have no published reference in it.

    Raises:
        WeightsAbsent, InputError: see `imagefolder.weights.require`.
    """
    path, device = require(CLEAN_INCEPTION), default_device()
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    inception, resize = InceptionV3W(str(path.parent), download=False).to(device).eval(), build_resizer("clean")

    def network(images: Tensor) -> tuple[Tensor, ...]:
        resized = np.stack([resize(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()])
        return (inception(torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)).float(),)

    return Extractor(
        name="inception-2015-12-05",
        network=network,
        widths=Widths(2048),
        device=device,
        prefix="clean-",
        path=path,
        sha256=FILES[CLEAN_INCEPTION].sha256,
        evaluator=VERSION,
        metrics=frozenset({"rFID"}),
    )
