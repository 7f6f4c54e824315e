"""Labels of windows and what batches draw from them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.systems.rcnn import SAMPLING
from rcnnpipe.training.windows import (
    by_image,
    check_sampling,
    draw_batch,
    gather_windows,
    image_ids_of,
    label_windows,
)
from tests.training.made import record_of, windows_of

BOX = [10.0, 10.0, 20.0, 20.0]  # 100 square pixels


def labels_of(record: Any, boxes: Any, sampling: Any = SAMPLING, **policy: str) -> list[int]:
    proposals = np.array(boxes, np.float32).reshape(-1, 4)
    ((windows, labels),) = label_windows([record], [proposals], 2, sampling, policy)
    assert len(windows) == len(labels)
    return list(labels)


def test_half_overlap_is_foreground_and_anything_less_background() -> None:
    half = [10, 10, 20, 15]  # 50 / 100 = 0.5 exactly
    less = [10, 10, 20, 14]  # 40 / 100
    apart = [40, 40, 50, 50]
    found = labels_of(record_of([BOX], [2]), [half, less, apart])
    assert found == [2, 2, 0, 0]  # the object itself comes first


def test_overlaps_between_the_thresholds_are_neither() -> None:
    sampling = replace(SAMPLING, foreground_overlap=0.6, background_overlap=0.3)
    inner = [[10, 10, 20, 16], [10, 10, 20, 15], [10, 10, 20, 13], [10, 10, 20, 12]]  # .6 .5 .3 .2
    assert labels_of(record_of([BOX], [1]), inner, sampling) == [1, 1, -1, -1, 0]


def test_a_window_is_of_the_class_it_overlaps_most() -> None:
    record = record_of([BOX, [10, 10, 20, 17]], [1, 2])
    # against the first 80 / 100, against the second 70 / 80
    assert labels_of(record, [[10, 10, 20, 18]]) == [1, 2, 2]


def test_two_objects_in_one_place_are_each_their_own_class() -> None:
    assert labels_of(record_of([BOX, BOX], [1, 2]), []) == [1, 2]


def test_regions_in_a_crowd_are_neither_and_the_crowd_is_no_window() -> None:
    record = record_of([BOX, [30, 30, 60, 60]], [1, 2], crowd=[1])
    inside, outside = [32, 32, 42, 42], [70, 5, 80, 15]
    assert labels_of(record, [inside, outside]) == [1, -1, 0]
    assert labels_of(record, [inside, outside], crowd="drop") == [1, 0, 0]
    assert labels_of(record, [[30, 30, 60, 60]], crowd="keep") == [1, 2, 2]


def test_difficult_objects_train_unless_told_otherwise() -> None:
    record = record_of([BOX], [1], difficult=[0])
    assert labels_of(record, [BOX]) == [1, 1]
    assert labels_of(record, [BOX], difficult="drop") == [0]
    assert labels_of(record, [BOX], difficult="ignore") == [-1]


def test_images_without_objects_give_background_alone() -> None:
    assert labels_of(record_of(), [BOX, [0, 0, 5, 5]]) == [0, 0]


def test_labels_equal_a_slow_reference() -> None:
    random = np.random.default_rng(5)

    def boxes(count: int) -> Any:
        low = random.integers(0, 40, (count, 2))
        corners = np.concatenate((low, low + random.integers(5, 30, (count, 2))), 1)
        return corners.astype(np.float64)

    def iou(a: Any, b: Any) -> float:
        wide = min(a[2], b[2]) - max(a[0], b[0])
        high = min(a[3], b[3]) - max(a[1], b[1])
        both = max(wide, 0) * max(high, 0)
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return float(both / (sum(areas) - both))

    for _ in range(20):
        record = record_of(boxes(4), random.integers(1, 3, 4))
        regions = boxes(40)
        expected = list(record.labels)
        for region in regions:
            overlaps = [iou(region, box) for box in record.boxes]
            best = int(np.argmax(overlaps))
            expected.append(int(record.labels[best]) if overlaps[best] >= 0.5 else 0)
        assert labels_of(record, regions) == expected


def test_gathered_windows_know_their_image() -> None:
    first = (np.full((2, 4), 1, np.float32), np.array([1, 0]))
    second = (np.full((0, 4), 2, np.float32), np.empty(0, np.int64))
    third = (np.full((2, 4), 3, np.float32), np.array([-1, 0]))
    windows = gather_windows([first, second, third], SAMPLING)
    assert windows.images.tolist() == [0, 0, 2, 2]
    assert windows.boxes[:, 0].tolist() == [1, 1, 3, 3]
    assert (windows.foreground.tolist(), windows.background.tolist()) == ([0], [1, 3])


def test_an_empty_list_is_told_apart_and_only_where_it_is_needed() -> None:
    objects = [(np.zeros((1, 4), np.float32), np.array([1]))]
    nothing = [(np.zeros((1, 4), np.float32), np.array([0]))]
    with pytest.raises(DataError, match="none of the 1 images has an object"):
        gather_windows(nothing, SAMPLING)
    with pytest.raises(DataError, match="no background to learn from"):
        gather_windows(objects, SAMPLING)
    gather_windows(nothing, replace(SAMPLING, foreground=0))
    gather_windows(objects, replace(SAMPLING, foreground=128))


def test_batches_are_drawn_over_all_windows_not_per_image() -> None:
    # Image 0 has 900 of 1000 background windows and 1 of 10 foreground windows.
    images = [0] * 900 + list(range(1, 101)) + list(range(10))
    windows = windows_of([0] * 1000 + [1] * 10, images)
    draws = [draw_batch(windows, SAMPLING, 0, i) for i in range(200)]
    rows = np.stack([draw.rows for draw in draws])
    assert (windows.labels[rows[:, :32]] == 1).all()
    assert (windows.labels[rows[:, 32:]] == 0).all()
    assert rows.shape == (200, 128)
    # 19,200 draws with p = .9: standard deviation 0.0022; 6,400 with p = .1: 0.0038
    assert (windows.images[rows[:, 32:]] == 0).mean() == pytest.approx(0.9, abs=0.01)
    assert (windows.images[rows[:, :32]] == 0).mean() == pytest.approx(0.1, abs=0.015)
    # With replacement: 32 of 10 windows can be had at all, and all of them turn up.
    assert len(np.unique(rows[:, :32])) == 10
    flips = np.stack([draw.flip for draw in draws])
    assert flips.mean() == pytest.approx(0.5, abs=0.015)


def test_a_batch_depends_on_seed_and_iteration_alone() -> None:
    windows = windows_of([0, 1] * 50, [0] * 100)
    one, same = (draw_batch(windows, SAMPLING, 3, 7) for _ in range(2))
    assert (one.rows == same.rows).all()
    assert (one.flip == same.flip).all()
    for seed, iteration in ((3, 8), (4, 7)):
        assert (draw_batch(windows, SAMPLING, seed, iteration).rows != one.rows).any()


def test_without_mirroring_the_same_windows_are_drawn_unflipped() -> None:
    windows = windows_of([0, 1] * 50, [0] * 100)
    plain = draw_batch(windows, replace(SAMPLING, mirror=False), 0, 0)
    assert (plain.rows == draw_batch(windows, SAMPLING, 0, 0).rows).all()
    assert not plain.flip.any()


def test_parts_share_a_batch_with_its_foreground() -> None:
    windows = windows_of([0, 1] * 50, list(range(100)))
    draw = draw_batch(windows, SAMPLING, 0, 0)
    parts = [draw.part(number, 4) for number in range(4)]
    together = np.sort(np.concatenate([part.rows for part in parts]))
    assert (together == np.sort(draw.rows)).all()
    assert [int((windows.labels[part.rows] > 0).sum()) for part in parts] == [8] * 4


def test_grouping_by_image_keeps_every_window_and_its_flip() -> None:
    windows = windows_of([0, 1] * 50, [number % 7 for number in range(100)])
    draw = draw_batch(windows, SAMPLING, 0, 0)
    groups = by_image(windows, draw)
    numbers = [number for number, _ in groups]
    assert numbers == sorted(set(numbers))
    pairs = sorted(zip(draw.rows, draw.flip, strict=True))
    held = [p for _, part in groups for p in zip(part.rows, part.flip, strict=True)]
    assert sorted(held) == pairs
    assert all((windows.images[part.rows] == number).all() for number, part in groups)
    names = [f"i{number}" for number in range(7)]
    assert image_ids_of(windows, draw, names) == [names[number] for number in numbers]


@pytest.mark.parametrize(
    ("change", "shares", "sentence"),
    [
        ({"foreground": 129}, 1, "--foreground 129 is not within a batch of 128"),
        ({"background_overlap": 0.6}, 1, "--background-overlap 0.6 is above"),
        ({}, 129, "a batch of 128 cannot be shared by 129"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    change: dict[str, Any], shares: int, sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence):
        check_sampling(replace(SAMPLING, **change), shares)
    check_sampling(SAMPLING, 128)
