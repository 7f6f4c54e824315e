import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.artifacts.features import open_features
from rcnnpipe.errors import ArtifactError
from rcnnpipe.linear import cache
from tests.artifacts_made import make_features

COUNTS = (0, 4, 0, 0, 7, 1, 3, 0)
LAYOUT: dict[str, Any] = {
    "counts": COUNTS,
    "image_ids": tuple(f"image{i}" for i in range(len(COUNTS))),
    "sizes": np.full((len(COUNTS), 2), 100),
}


@pytest.mark.parametrize("rows_at_once", [1, 4, 5, 8, 1000])
def test_blocks_of_any_size_give_every_image_once(
    rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_BLOCK_BYTES", rows_at_once * 2 * 32)
    labels = np.array([1, 2, -1, 0] * 3 + [1, 1, -1])
    path = make_features(tmp_path / "f.h5", **LAYOUT, labels=labels)
    with open_features(path) as features:
        images = [image for image in cache.image_rows(features, "fc7") if len(image.features)]
        starts = features.offsets[:-1][np.diff(features.offsets) > 0]
        assert [image.first for image in images] == starts.tolist()
        whole = features.rows("fc7", slice(None))
        np.testing.assert_array_equal(np.concatenate([i.features for i in images]), whole)
        overlaps = np.concatenate([image.overlaps for image in images])
        ignored = labels < 0
        assert (overlaps[ignored] == 1).all()
        np.testing.assert_array_equal(overlaps[~ignored], features.overlaps[~ignored])


def test_positives_are_the_ground_truth_of_each_class(tmp_path: Path) -> None:
    is_truth = np.array([1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0], bool)
    labels = np.array([2, 1, 1, 0, 2, 2, 1, 1, 0, 2, 0, 1, 2, 2, 0])
    difficult = np.zeros(15, bool)
    difficult[[1, 5]] = True
    columns: dict[str, Any] = {"is_truth": is_truth, "labels": labels, "difficult": difficult}
    path = make_features(tmp_path / "f.h5", **LAYOUT, **columns)
    with open_features(path) as features:
        whole = features.rows("pool5", slice(None))
        first, second = cache.positive_rows(features, "pool5")
        np.testing.assert_array_equal(first, whole[[1, 6]])
        np.testing.assert_array_equal(second, whole[[0, 4, 5, 12]])
        first, second = cache.positive_rows(features, "pool5", difficult=False)
        np.testing.assert_array_equal(first, whole[[6]])
        np.testing.assert_array_equal(second, whole[[0, 4, 12]])


def test_broken_features_are_told(tmp_path: Path) -> None:
    values = np.ones((10, 32))
    values[0, 3] = np.nan
    broken: dict[str, Any] = {"layers/fc7": values}
    path = make_features(tmp_path / "f.h5", **broken)
    with open_features(path) as features:
        with pytest.raises(
            ArtifactError, match="no finite numbers in layer 'fc7' of image 'first'"
        ):
            cache.positive_rows(features, "fc7")
        with pytest.raises(ArtifactError, match="has mean norm nan in layer 'fc7'"):
            cache.feature_scale(features, "fc7")
        norm = features.mean_norm("pool5")
        assert cache.feature_scale(features, "pool5") == pytest.approx(20 / norm)


def test_reading_ahead_keeps_order_and_raises_what_goes_wrong() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for i in range(7):
            threads.add(threading.get_ident())
            yield i
        raise ArtifactError("the eighth is broken")

    found: list[int] = []
    with pytest.raises(ArtifactError, match="eighth"):
        found.extend(cache.ahead(items()))
    assert found == list(range(7))
    assert threading.get_ident() not in threads


def test_reading_ahead_stops_with_its_reader() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    for item in cache.ahead(items(), depth=3):
        if item == 5:
            break
    assert len(made) < 20
