"""The embedded digits: always the same images in the same two splits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from imagefolder.data.digits import digits
from imagefolder.data.images import DataSplits

SHA256 = "f4eaf250c7af6a6962264cd50739f6f3200640ad626dd0c0900c2bd02c25675d"


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return digits(32)


def fetch_all(images) -> tuple[torch.Tensor, torch.Tensor]:
    return images.__getitems__([(0, i) for i in range(len(images))])


def test_sizes(splits: DataSplits) -> None:
    assert (len(splits.train), len(splits.test)) == (1347, 450)
    assert splits.classes == list("0123456789")


def test_content_is_pinned(splits: DataSplits) -> None:
    assert splits.sha256 == SHA256


def test_identity_depends_on_the_size(splits: DataSplits) -> None:
    assert digits(16).sha256 != splits.sha256


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_8_bit_rgb_over_the_whole_range(splits: DataSplits, split: str) -> None:
    images, labels = fetch_all(getattr(splits, split))
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (3, 32, 32)
    assert labels.dtype == torch.int64
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert torch.equal(images[:, 0], images[:, 1])


def test_both_splits_have_the_same_class_shares(splits: DataSplits) -> None:
    train, test = (torch.bincount(s.labels, minlength=10) for s in (splits.train, splits.test))
    whole = (train + test).double()
    assert ((test - whole * 450 / 1797).abs() <= 1).all()


def test_no_scan_is_in_both_splits(splits: DataSplits) -> None:
    seen = [{image.numpy().tobytes() for image in fetch_all(s)[0]} for s in (splits.train, splits.test)]
    assert not seen[0] & seen[1]
    distinct = len({scan.tobytes() for scan in load_digits().images})
    assert len(seen[0] | seen[1]) == distinct == 1797


def test_labels_belong_to_their_images(splits: DataSplits) -> None:
    """Averaged back to 8 x 8, most digits are closest to the mean scan of their own label."""
    bunch = load_digits()
    means = torch.stack([torch.from_numpy(bunch.images[bunch.target == c].mean(0)) for c in range(10)])
    images, labels = fetch_all(splits.test)
    small = torch.nn.functional.avg_pool2d(images[:, 0].double() / 255 * 16, 4)
    nearest = (small[:, None] - means[None]).square().sum((2, 3)).argmin(1)
    assert (nearest == labels).double().mean() > 0.8
