"""The embedded data set: scikit-learn's handwritten digits (1797 real scans of 8 x 8, 10 classes)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from imagefolder.data.images import ArrayImages, DataSplits

TEST_IMAGES = 450


def digits(image_size: int = 32) -> DataSplits:
    """Digits as RGB images (bicubic from 8 x 8), stratified into 1347 training and 450 test images, always the same."""
    from sklearn.datasets import load_digits  # takes seconds to import, and only this function needs it
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16 * 255
    images = F.interpolate(small, size=(image_size, image_size), mode="bicubic").clamp(0, 255).round()
    images = images.to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, random_state=0, stratify=labels)
    return DataSplits(
        name="digits",
        train=ArrayImages(images[train], labels[train]),
        test=ArrayImages(images[test], labels[test]),
        classes=[str(digit) for digit in range(10)],
        image_size=image_size,
    )
