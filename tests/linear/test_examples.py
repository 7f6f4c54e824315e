from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.artifacts.features import open_features
from rcnnpipe.errors import ArtifactError
from rcnnpipe.linear import examples
from rcnnpipe.linear.cache import image_rows
from tests.artifacts_made import make_features

# Two objects in the first image (rows 0, 1), one in the third (row 4), as make_features lays out.
COLUMNS: dict[str, Any] = {
    "is_truth": np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 0], bool),
    "labels": np.array([2, 1, 1, 2, 2, 2, 2, -1, 0, 2]),
    "overlap": np.array([1, 1, 0.7, 0.6, 1, 0.61, 0.9, 0.8, 0, 0.3], np.float32),
    "truth": np.array([0, 1, 1, 0, 0, 0, 0, 0, -1, 0]),
    "boxes": np.array([[0, 0, 20 + i, 30 + i] for i in range(10)], np.float32),
}


def test_examples_are_what_overlaps_by_more_than_the_threshold(tmp_path: Path) -> None:
    path = make_features(tmp_path / "f.h5", **COLUMNS)
    with open_features(path) as features:
        choice = examples.choose_examples(features)
        # 0.6 itself is not above it; the ignored region (-1) is nobody's; by class, then row.
        assert choice.rows.tolist() == [1, 2, 0, 4, 5, 6]
        assert choice.objects.tolist() == [1, 1, 0, 4, 4, 4]
        assert choice.offsets.tolist() == [0, 2, 6]
        images = image_rows(features, "pool5")
        found = examples.collect_features(images, choice, features.layers["pool5"])
        np.testing.assert_array_equal(found, features.rows("pool5", slice(None))[choice.rows])


def test_boxes_without_a_size_teach_nothing(tmp_path: Path) -> None:
    boxes = COLUMNS["boxes"].copy()
    boxes[2, 2] = 1  # one pixel wide: no width by the authors' x2 - x1
    path = make_features(tmp_path / "f.h5", **COLUMNS | {"boxes": boxes})
    with open_features(path) as features:
        assert 2 not in examples.choose_examples(features).rows
        assert 2 in examples.choose_examples(features, pixel=0.0).rows


def test_much_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_features(tmp_path / "f.h5", **COLUMNS)
    monkeypatch.setattr(examples, "_MEMORY", 100)
    with open_features(path) as features:
        choice = examples.choose_examples(features)
        images = image_rows(features, "pool5")
        found = examples.collect_features(images, choice, 32, tmp_path)
        assert isinstance(found, np.memmap)
        np.testing.assert_array_equal(found, features.rows("pool5", slice(None))[choice.rows])
    del found
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.h5"]


def test_features_without_ground_truth_rows_are_refused(tmp_path: Path) -> None:
    truth = np.full(10, -1)
    path = make_features(tmp_path / "f.h5", **COLUMNS | {"truth": truth})
    with open_features(path) as features, pytest.raises(ArtifactError, match="with --truth"):
        examples.choose_examples(features)
