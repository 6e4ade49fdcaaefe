"""The embedded dataset: scikit-learn's handwritten digits (1797 real scans of 8 x 8 pixels, 10 classes)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from imagefolder.data.images import ArrayImages, DataSplits

TEST_IMAGES = 450


def digits(image_size: int = 32) -> DataSplits:
    """Digits as RGB images (bicubic from 8 x 8), in a fixed stratified split of 1347 training and 450 test images."""
    from sklearn.datasets import load_digits  # slow imports that only this function needs
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    small = (bunch.images * 255 / 16).round().astype(np.uint8)
    # Pillow resizes 8-bit images in integer arithmetic, so that pixels and hash are the same on every machine
    size = (image_size, image_size)
    large = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in small]
    images = torch.from_numpy(np.stack(large))[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, random_state=0, stratify=labels)
    return DataSplits(
        name="digits",
        train=ArrayImages(images[train], labels[train]),
        test=ArrayImages(images[test], labels[test]),
        classes=[str(digit) for digit in range(10)],
        image_size=image_size,
    )
