"""The drawn set: the same bytes for a seed, annotations that fit the pixels."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from rcnnpipe.datasets import open_dataset
from rcnnpipe.datasets.masks import decode_segment
from rcnnpipe.datasets.outlines import (
    OTHER_SHAPES,
    SHAPES,
    clip_polygon,
    polygon_area,
    transform,
)
from rcnnpipe.datasets.records import Dataset
from rcnnpipe.datasets.scenes import LEAST_VISIBLE, draw_scene
from rcnnpipe.datasets.shapes import COUNTS as COUNTS_OF_SETS
from rcnnpipe.datasets.shapes import draw_set, is_drawn
from rcnnpipe.errors import DataError
from rcnnpipe.images import read_image
from rcnnpipe.randomness import generator

COUNTS = {"train": 24, "val": 4}


def drawn(out: Path, seed: int = 0, name: str = "shapes", counts: dict[str, int] = COUNTS) -> Path:
    for _ in draw_set(out, name, counts, seed):
        assert not out.exists()  # nothing is there before all is
    return out


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("shapes") / "shapes")


@pytest.fixture(scope="module")
def dataset(root: Path) -> Dataset:
    return open_dataset(root, "train")


def test_the_same_seed_draws_the_same_bytes(root: Path, tmp_path: Path) -> None:
    small = {"train": 3}
    first, again = drawn(tmp_path / "a", counts=small), drawn(tmp_path / "b", counts=small)
    assert digest(first) == digest(again)
    other = digest(drawn(tmp_path / "c", seed=1, counts=small))
    assert not set(other.values()) & set(digest(first).values())
    # An image depends on its number, not on how many are drawn.
    assert digest(first)["images/train/00002.png"] == digest(root)["images/train/00002.png"]


def test_all_parts_of_the_task_are_there(dataset: Dataset) -> None:
    assert dataset.classes == ("background", *SHAPES)
    assert len(dataset.records) == 24
    labels = np.concatenate([record.labels for record in dataset.records])
    assert set(labels) == set(range(1, 7))
    for column in ("difficult", "truncated", "crowd"):
        assert any(getattr(record, column).any() for record in dataset.records), column
    assert any(len(record.boxes) == 0 for record in dataset.records)
    assert len(dataset.keypoint_names) == 5
    sides = np.sqrt(np.concatenate([record.areas for record in dataset.records]))
    assert sides.min() < 25
    assert sides.max() > 70


def test_boxes_lie_inside_and_images_have_the_said_size(dataset: Dataset) -> None:
    for record in dataset.records:
        assert read_image(record.path).shape[:2] == record.size
        assert (record.boxes >= 0).all()
        assert (record.boxes <= np.tile(record.size[::-1], 2)).all()


def test_masks_fill_their_boxes(dataset: Dataset) -> None:
    kinds = set()
    for record in dataset.records:
        for box, area, segment in zip(
            record.boxes, record.areas, record.segments or (), strict=True
        ):
            mask = decode_segment(segment, record.size)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(bounds, box, atol=2.5)  # sharp tips cover no pixel's half
            np.testing.assert_allclose(mask.sum(), area, rtol=0.1, atol=15)
            kinds.add(type(segment["counts"]) if isinstance(segment, dict) else list)
            kinds.add(type(segment))
    assert kinds == {list, dict, str}  # polygons, uncompressed and compressed run lengths


def test_keypoints_bound_what_is_whole(dataset: Dataset) -> None:
    checked = 0
    for record in dataset.records:
        assert record.keypoints is not None
        for points, box, cut, crowd in zip(
            record.keypoints, record.boxes, record.truncated, record.crowd, strict=True
        ):
            if crowd:
                assert not points.any()
            elif not cut:
                (_, top, right, bottom, left) = points
                corners = [left[0], top[1], right[0], bottom[1]]
                np.testing.assert_allclose(corners, box, atol=0.02)
                assert (points[:, 2] == 2).all()
                checked += 1
    assert checked > 10


def test_what_is_annotated_can_be_seen() -> None:
    scenes = [draw_scene(OTHER_SHAPES, generator(3, "test", number)) for number in range(12)]
    shapes = [shape for scene in scenes for shape in scene.shapes if not shape.crowd]
    assert len(shapes) > 12
    assert all(shape.share >= LEAST_VISIBLE - 0.02 for shape in shapes)
    for scene in scenes:
        assert sum(shape.visible.astype(int) for shape in scene.shapes) is not None
        total = np.sum([shape.visible for shape in scene.shapes], axis=0)
        assert np.max(total, initial=0) <= 1  # a pixel shows one shape


@pytest.mark.parametrize("name", [*SHAPES, *OTHER_SHAPES])
def test_clipping_keeps_the_inner_area(name: str) -> None:
    outline = {**SHAPES, **OTHER_SHAPES}[name]
    assert np.abs(outline).max() <= 1.3
    polygon = transform(outline, np.array([3.0, 30.0]), np.array([20.0, 26.0]), 0.7)
    clipped = clip_polygon(polygon, (40, 50))
    assert (clipped >= 0).all()
    assert (clipped <= (50, 40)).all()
    y, x = np.mgrid[0:40:0.25, 0:50:0.25] + 0.125  # slow: count samples inside the whole outline
    inside = np.zeros(x.shape, bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, 1, 0), strict=True):
        crosses = (y1 > y) != (y2 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    np.testing.assert_allclose(polygon_area(clipped), inside.sum() / 16, rtol=0.01)


def test_a_complete_set_is_known_and_another_not_overwritten(root: Path, tmp_path: Path) -> None:
    assert is_drawn(root, "shapes", COUNTS, 0)
    assert not is_drawn(tmp_path / "new", "shapes", COUNTS, 0)
    assert not is_drawn(tmp_path, "shapes", COUNTS, 0)  # an empty folder
    with pytest.raises(DataError, match="drawn with other settings"):
        is_drawn(root, "shapes", COUNTS, 1)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="exists and is no drawn set"):
        is_drawn(tmp_path, "shapes", COUNTS, 0)


def test_a_killed_drawing_starts_anew(tmp_path: Path) -> None:
    small = {"train": 2}
    begun = draw_set(tmp_path / "s", "shapes-pretrain", small, 0)
    next(begun)
    del begun
    assert not (tmp_path / "s").exists()
    whole = drawn(tmp_path / "s", name="shapes-pretrain", counts=small)
    assert digest(whole) == digest(drawn(tmp_path / "t", name="shapes-pretrain", counts=small))
    assert not (tmp_path / "s.partial").exists()
    document = json.loads((whole / "annotations" / "instances_train.json").read_text())
    assert [category["name"] for category in document["categories"]] == list(OTHER_SHAPES)


@pytest.mark.parametrize("name", ["shapes", "shapes-pretrain"])
def test_the_recipe_in_the_repository_reads_it(tmp_path: Path, name: str) -> None:
    recipe = Path(__file__).parents[2] / "data" / f"{name}.yaml"
    (tmp_path / recipe.name).write_text(recipe.read_text())
    counts = dict.fromkeys(COUNTS_OF_SETS[name], 1)
    drawn(tmp_path / name, name=name, counts=counts)
    for split in counts:
        assert len(open_dataset(tmp_path / recipe.name, split).records) == 1
