from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.errors import ArtifactError
from rcnnpipe.evaluation.columns import Truth
from rcnnpipe.evaluation.stored import stored_proposals, stored_results
from tests import artifacts_made as made
from tests.evaluation.made import truth


def about(*image_ids: str, classes: tuple[str, ...] = made.CLASSES) -> Truth:
    one = truth([(0, 1, (0, 0, 10, 10))], images=len(image_ids))
    known = dict(zip(made.IMAGE_IDS, made.SIZES, strict=True))
    sizes = np.array([known.get(image_id, (9, 9)) for image_id in image_ids])
    changed = {"image_ids": image_ids, "sizes": sizes, "classes": classes}
    return Truth(**{**vars(one), **changed})


def test_images_of_the_same_ids_and_other_sizes(tmp_path: Path) -> None:
    path = made.make_proposals(tmp_path / "p.h5")
    other = replace(about("first", "third"), sizes=np.array([(120, 160), (80, 201)]))
    with pytest.raises(ArtifactError, match="200 x 80 image 'third', but it is 201 x 80"):
        stored_proposals(path, read_proposals(path), other)


def test_detections_in_the_order_of_the_truth(tmp_path: Path) -> None:
    path = made.make_detections(tmp_path / "d.h5")  # images first, empty, third of 4, 0, 6 rows
    stored = read_detections(path)
    results = stored_results(path, stored, about("third", "empty", "first"))
    np.testing.assert_array_equal(results.images, [2] * 4 + [0] * 6)
    np.testing.assert_array_equal(results.boxes, stored.boxes.astype(np.float64))
    np.testing.assert_array_equal(results.labels, stored.labels)
    assert results.notes == ()


def test_detections_on_other_images_are_left_out(tmp_path: Path) -> None:
    path = made.make_detections(tmp_path / "d.h5")
    stored = read_detections(path)
    results = stored_results(path, stored, about("third"))
    np.testing.assert_array_equal(results.scores, stored.scores[4:].astype(np.float64))
    assert results.notes == ("2 images of the file are not among those evaluated and left out",)


def test_detections_that_do_not_fit(tmp_path: Path) -> None:
    path = made.make_detections(tmp_path / "d.h5")
    with pytest.raises(ArtifactError, match="no detections for 1 of 2 images, the first is 'new'"):
        stored_results(path, read_detections(path), about("third", "new"))
    others = about("third", classes=("background", "cat", "cow"))
    with pytest.raises(ArtifactError, match="different classes: cat, dog against cat, cow"):
        stored_results(path, read_detections(path), others)


def test_proposals_in_the_order_of_the_truth(tmp_path: Path) -> None:
    path = made.make_proposals(tmp_path / "p.h5")
    stored = read_proposals(path)
    boxes, offsets, notes = stored_proposals(path, stored, about("third", "empty", "first"))
    np.testing.assert_array_equal(offsets, [0, 6, 6, 10])
    np.testing.assert_array_equal(boxes, np.concatenate([stored.boxes[4:], stored.boxes[:4]]))
    assert notes == ()
    boxes, offsets, notes = stored_proposals(path, stored, about("first"))
    np.testing.assert_array_equal(boxes, stored.boxes[:4])
    assert len(notes) == 1
    with pytest.raises(ArtifactError, match="no proposals for 1 of 1 images, the first is 'new'"):
        stored_proposals(path, stored, about("new"))
