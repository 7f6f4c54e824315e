"""Which regions a detector learns from and what they should become, against loops over regions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnnpipe import boxes as box_ops
from rcnnpipe.systems import fast
from rcnnpipe.systems.rcnn import Sampling
from rcnnpipe.training.region_targets import (
    Candidates,
    Truth,
    candidates_of,
    delta_statistics,
    label_regions,
    sample_regions,
)
from tests.reference import regions as slow

SAMPLING = fast.SAMPLING
BOX = (10.0, 10.0, 20.0, 20.0)  # 100 square pixels


def truth_of(*objects: tuple[Any, int]) -> Truth:
    boxes = torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4)
    return Truth(boxes, torch.tensor([label for _, label in objects], dtype=torch.int64))


def boxes_of(*boxes: Any) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def labels_of(*boxes: Any, truth: Truth, sampling: Sampling = SAMPLING) -> list[int]:
    return label_regions(boxes_of(*boxes), truth, sampling).labels.tolist()


def random_boxes(count: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Whole numbers, so that overlaps of exactly a half and equal ones happen."""
    low = random.integers(0, 40, (count, 2))
    return np.concatenate((low, low + random.integers(5, 30, (count, 2))), axis=1).astype(float)


def random_image(seed: int, counts: tuple[int, int, int] = (4, 1, 40)) -> tuple[Any, Any]:
    """(boxes, objects) as the reference has them; objects, those to ignore, and regions by count.

    Some regions lie near objects, some are moved copies of them.
    """
    random = np.random.default_rng(seed)
    objects, crowds, regions = (random_boxes(count, random) for count in counts)
    labels = [*random.integers(1, 4, len(objects)).tolist(), *([-1] * len(crowds))]
    boxes = np.concatenate((objects, crowds))
    order = random.permutation(len(boxes))
    if len(objects):
        near = objects[random.integers(len(objects), size=10)] + random.integers(-3, 4, (10, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        regions = np.concatenate((regions, near))
    held = [(tuple(boxes[number].tolist()), labels[number]) for number in order]
    return [tuple(box) for box in regions.tolist()], held


def test_the_papers_numbers_are_the_defaults() -> None:
    assert (SAMPLING.batch_size, SAMPLING.foreground, fast.IMAGES) == (128, 32, 2)
    overlaps = (SAMPLING.foreground_overlap, SAMPLING.background_overlap, SAMPLING.background_from)
    assert overlaps == (0.5, 0.5, 0.1)


def test_overlaps_exactly_at_the_limits() -> None:
    truth = truth_of((BOX, 2))
    half, less = (10, 10, 20, 15), (10, 10, 20, 14)  # IoU 1 / 2, 4 / 10
    tenth, touching = (10, 10, 20, 11), (10, 10, 20, 10.5)  # 1 / 10, 1 / 20
    found = labels_of(half, less, tenth, touching, (40, 40, 50, 50), BOX, truth=truth)
    assert found == [2, 0, 0, -1, -1, 2]
    # From an overlap of 0 on, what touches nothing is background too.
    whole = replace(SAMPLING, background_from=0.0)
    assert labels_of(touching, (40, 40, 50, 50), truth=truth, sampling=whole) == [0, 0]
    apart = replace(SAMPLING, foreground_overlap=0.6, background_overlap=0.3)
    assert labels_of((10, 10, 20, 16), half, less, tenth, truth=truth, sampling=apart) == [
        *(2, -1, -1, 0)
    ]


def test_of_equal_overlaps_the_first_object_counts() -> None:
    left, right, between = (0, 0, 10, 10), (10, 0, 20, 10), (5, 0, 15, 10)
    low = replace(SAMPLING, foreground_overlap=1 / 3 - 1e-6, background_overlap=0.3)
    for first, second in ((left, right), (right, left)):
        truth = truth_of((first, 1), (second, 2))
        found = label_regions(boxes_of(between), truth, low)
        assert (found.labels.tolist(), found.objects.tolist()) == ([1], [0])


@pytest.mark.parametrize("seed", range(12))
def test_labels_and_objects_equal_the_slow_reference(seed: int) -> None:
    boxes, objects = random_image(seed)
    truth = truth_of(*objects)
    counted = truth.boxes[truth.labels > 0]
    rules = [(0.5, 0.5, 0.1), (0.6, 0.3, 0.0), (0.3, 0.3, 0.05)]
    for foreground, background, least in rules:
        sampling = Sampling(64, 16, foreground, background, least)
        found = label_regions(boxes_of(*boxes), truth, sampling)
        expected = [slow.what_it_is(box, objects, foreground, background, least) for box in boxes]
        assert found.labels.tolist() == [label for label, _ in expected]
        for number, (label, target) in enumerate(expected):
            if label > 0:
                assert tuple(counted[found.objects[number]].tolist()) == target
    assert len(set(found.labels.tolist())) > 2


def test_regions_in_a_crowd_are_no_background_but_may_be_objects() -> None:
    truth = truth_of(((30, 30, 60, 60), -1), (BOX, 1), ((40, 40, 50, 50), 2))
    sampling = replace(SAMPLING, background_from=0.0)
    inside, half, outside = (50, 50, 60, 60), (25, 50, 35, 60), (0, 50, 10, 60)
    more = (26, 50, 36, 60)
    found = labels_of(inside, half, more, outside, (40, 40, 50, 51), truth=truth, sampling=sampling)
    assert found == [-1, 0, -1, 0, 2]
    # The crowd itself is no region to learn from.
    sample = sample_regions(boxes_of(), truth, sampling, 2, np.random.default_rng(0))
    assert sample.boxes.tolist() == [list(BOX), [40, 40, 50, 50]]
    assert sample.labels.tolist() == [1, 2]


def test_an_image_without_objects() -> None:
    for truth in (truth_of(), truth_of(((0, 0, 5, 5), -1))):
        assert labels_of(BOX, truth=truth) == [-1]  # it overlaps nothing by a tenth
        random = np.random.default_rng(0)
        sample = sample_regions(boxes_of(BOX), truth, SAMPLING, 2, random)
        assert [tuple(part.shape) for part in sample] == [(0, 4), (0,), (0, 4)]
        whole = replace(SAMPLING, background_from=0.0)
        sample = sample_regions(boxes_of(BOX, BOX), truth, whole, 2, random)
        assert (sample.labels.tolist(), sample.deltas.tolist()) == ([0, 0], [[0] * 4] * 2)
    nothing = sample_regions(boxes_of(), truth_of(), SAMPLING, 2, np.random.default_rng(0))
    assert len(nothing.boxes) == len(nothing.labels) == len(nothing.deltas) == 0


def many(objects: int, near: int, background: int) -> tuple[Tensor, Truth]:
    """An image of so many objects, regions near them, and regions that overlap one by a third."""
    random = np.random.default_rng(0)
    truth = truth_of(*[((30.0 * n, 0, 30.0 * n + 20, 20), 1 + n % 3) for n in range(objects)])
    on = truth.boxes[torch.from_numpy(random.integers(objects, size=near + background))].clone()
    on[:near, 2:] += torch.from_numpy(random.uniform(-4, 4, (near, 2))).float()
    on[near:, 0::2] += torch.from_numpy(random.uniform(9.5, 10, (background, 1))).float()
    return on[torch.from_numpy(random.permutation(len(on)))], truth


def test_at_most_a_quarter_are_objects_and_nothing_is_drawn_twice() -> None:
    proposals, truth = many(5, 30, 200)
    sample = sample_regions(proposals, truth, SAMPLING, 2, np.random.default_rng(1))
    assert len(sample.boxes) == 64
    assert [int(label) > 0 for label in sample.labels] == [True] * 16 + [False] * 48
    rows = {tuple(box) for box in sample.boxes.tolist()}
    assert len(rows) == 64
    candidates = {tuple(box) for box in torch.cat((truth.boxes, proposals)).tolist()}
    assert rows <= candidates
    # One image for the batch takes all of it.
    alone = sample_regions(proposals, truth, SAMPLING, 1, np.random.default_rng(1))
    assert (len(alone.boxes), int((alone.labels > 0).sum())) == (128, 32)


@pytest.mark.parametrize(
    ("near", "background", "expected"),
    [(2, 200, (7, 57)), (30, 20, (16, 20)), (3, 0, (8, 0)), (0, 0, (5, 0))],
)
def test_what_is_short_is_not_filled_up(
    near: int, background: int, expected: tuple[int, int]
) -> None:
    proposals, truth = many(5, near, background)
    sample = sample_regions(proposals, truth, SAMPLING, 2, np.random.default_rng(1))
    counts = (int((sample.labels > 0).sum()), int((sample.labels == 0).sum()))
    assert counts == expected


def test_annotated_objects_are_among_the_candidates() -> None:
    _, truth = many(5, 0, 0)
    for proposals in (boxes_of(), boxes_of((500, 500, 520, 520))):
        sample = sample_regions(proposals, truth, SAMPLING, 2, np.random.default_rng(0))
        assert torch.equal(sample.boxes, truth.boxes)
        assert torch.equal(sample.labels, truth.labels)
        assert not sample.deltas.any()


def test_two_objects_in_one_place_are_each_their_own_class() -> None:
    truth = truth_of((BOX, 2), (BOX, 1))
    sample = sample_regions(boxes_of(BOX), truth, SAMPLING, 2, np.random.default_rng(0))
    assert sample.labels.tolist() == [2, 1, 2]  # the proposal is the first of equals


def test_every_candidate_has_the_same_chance_and_the_draw_is_the_generators() -> None:
    proposals, truth = many(4, 36, 96)
    candidates = [tuple(box) for box in torch.cat((truth.boxes, proposals)).tolist()]
    taken = dict.fromkeys(candidates, 0)
    for seed in range(400):
        sample = sample_regions(proposals, truth, SAMPLING, 2, np.random.default_rng(seed))
        for box in sample.boxes.tolist():
            taken[tuple(box)] += 1
    is_object = label_regions(boxes_of(*candidates), truth, SAMPLING).labels > 0
    shares = torch.tensor(list(taken.values())) / 400
    assert int(is_object.sum()) == 40
    # 16 of 40 and 48 of 96; deviations .0245 and .025
    assert (shares[is_object] - 0.4).abs().max() < 0.1
    assert (shares[~is_object] - 0.5).abs().max() < 0.1
    one, same, other = (
        sample_regions(proposals, truth, SAMPLING, 2, np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(one.boxes, same.boxes)
    assert not torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("seed", range(6))
def test_samples_and_deltas_equal_the_slow_reference(seed: int) -> None:
    boxes, objects = random_image(seed)
    truth = truth_of(*objects)
    sample = sample_regions(boxes_of(*boxes), truth, SAMPLING, 2, np.random.default_rng(seed))
    assert (sample.labels > 0).any()
    assert (sample.labels == 0).any()
    assert (sample.boxes.dtype, sample.deltas.dtype) == (torch.float32, torch.float32)
    for box, label, deltas in zip(*(part.tolist() for part in sample), strict=True):
        expected, target = slow.what_it_is(box, objects, 0.5, 0.5, 0.1)
        assert label == expected
        if target is None:
            assert deltas == [0] * 4
        else:
            np.testing.assert_allclose(deltas, slow.encode(box, target), rtol=1e-5, atol=1e-6)
    moved = box_ops.decode(sample.boxes, sample.deltas)
    inside = sample.labels > 0
    counted = truth.boxes[truth.labels > 0]
    best = box_ops.iou(moved[inside], counted).max(dim=1).values
    torch.testing.assert_close(best, torch.ones_like(best))


def test_deltas_are_the_sheets() -> None:
    # From (0, 0, 10, 20) to (2, 5, 22, 25): centres (5, 10) and (12, 15)
    wide = replace(SAMPLING, foreground_overlap=0.2, background_overlap=0.2)
    truth = truth_of(((2, 5, 22, 25), 1))
    sample = sample_regions(boxes_of((0, 0, 10, 20)), truth, wide, 2, np.random.default_rng(0))
    assert sample.boxes[1].tolist() == [0, 0, 10, 20]
    np.testing.assert_allclose(sample.deltas[1], [0.7, 0.25, np.log(2), 0], rtol=1e-6, atol=1e-7)
    assert slow.encode((0, 0, 10, 20), (2, 5, 22, 25)) == pytest.approx([0.7, 0.25, np.log(2), 0])


def candidates(images: Any) -> list[Candidates]:
    return [candidates_of(boxes_of(*one), truth_of(*two), SAMPLING) for one, two in images]


def test_statistics_equal_the_slow_reference() -> None:
    images: list[tuple[Any, Any]] = [random_image(seed) for seed in range(8)]
    images += [([BOX], []), ([], [(BOX, 3)]), ([BOX], [(BOX, -1)])]
    means, deviations = delta_statistics(candidates(images), 5)
    expected = slow.statistics(images, 0.5, 5)
    assert means.shape == deviations.shape == (5, 4)
    assert means.dtype == deviations.dtype == torch.float32
    np.testing.assert_allclose(means, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(deviations, expected[1], rtol=1e-4, atol=1e-6)
    # Neither the background nor a class that is nowhere moves anything.
    for label in (0, 4):
        assert (means[label].tolist(), deviations[label].tolist()) == ([0] * 4, [1] * 4)
    assert (deviations[1:4] < 0.5).all()


def test_annotated_boxes_count_in_the_statistics() -> None:
    # One region that moves by 0.2 of its width, and the object itself, which does not.
    pair = ([(0, 0, 10, 10)], [((2, 0, 12, 10), 1)])
    means, deviations = delta_statistics(candidates([pair]), 2)
    np.testing.assert_allclose(means[1], [0.1, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(deviations[1], [0.1, 1, 1, 1], rtol=1e-5)


def test_statistics_of_duplicates_are_of_their_own_class() -> None:
    pair = ([(0, 0, 10, 10)], [((2, 0, 12, 10), 1), ((2, 0, 12, 10), 2)])
    means, deviations = delta_statistics(candidates([pair]), 3)
    np.testing.assert_allclose(means[1:, 0], [0.1, 0], atol=1e-7)
    np.testing.assert_allclose(deviations[1:, 0], [0.1, 1], rtol=1e-5)


def test_statistics_of_no_image() -> None:
    means, deviations = delta_statistics([], 3)
    assert not means.any()
    assert (deviations == 1).all()
