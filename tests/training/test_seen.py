"""Pixels, boxes, masks and keypoints of an image change together."""

from dataclasses import replace

import pytest
import torch

from rcnnpipe.datasets import open_dataset
from rcnnpipe.finetuning.training_views import seen_of
from rcnnpipe.images import read_image
from rcnnpipe.training.region_targets import Truth
from rcnnpipe.training.seen import Seen, Window, crop, mirror, other_sides
from tests.realdata import DATA, needs_data

NAMES = ("nose", "left_eye", "right_eye")
# cocoapi's person, nose to ankles: everything but the nose has another side.
PERSON = "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow "
PERSON += "right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle "
PERSON += "right_ankle"


def drawn() -> Seen:
    """Two L of one colour each, whose keypoints lie in cells of their own colours."""
    pixels = torch.zeros((3, 40, 60), dtype=torch.uint8)
    masks = torch.zeros((2, 40, 60), dtype=torch.bool)
    for number, (x, y) in enumerate(((4, 6), (35, 20))):
        masks[number, y : y + 15, x : x + 5] = True
        masks[number, y + 10 : y + 15, x : x + 20] = True
        pixels[0][masks[number]] = 100 + number
    keypoints = torch.tensor(
        [[[6.0, 8, 2], [4, 18, 1], [22, 17, 2]], [[0, 0, 0], [36, 21, 2], [0, 0, 0]]]
    )
    for number, (x, y, there) in enumerate(keypoints.view(-1, 3).tolist()):
        if there:
            pixels[1, int(y), int(x)] = 1 + number
    boxes = torch.tensor([[4.0, 6, 24, 21], [35, 20, 55, 35]])
    truth = Truth(boxes, torch.tensor([1, 2]))
    return Seen(pixels, truth, torch.tensor([[0.0, 0, 10, 10], [50, 30, 60, 40]]), masks, keypoints)


def check(seen: Seen, keypoints: list[list[int]]) -> None:
    """Everything lies where its pixels are; ``keypoints``: which ones stand in the places."""
    assert seen.masks is not None
    assert seen.keypoints is not None
    for row, label in enumerate(seen.truth.labels.tolist()):
        mask = seen.masks[row]
        assert torch.equal(mask, seen.pixels[0] == 99 + label)
        ys, xs = mask.nonzero().T
        around = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert seen.truth.boxes[row].tolist() == [float(side) for side in around]
        for place, number in enumerate(keypoints[row]):
            x, y, there = seen.keypoints[row, place].tolist()
            if number:
                assert seen.pixels[1, int(y), int(x)] == number
            assert bool(there) == bool(number)
            assert there or (x, y) == (0, 0)


def test_nothing_is_changed() -> None:
    check(drawn(), [[1, 2, 3], [0, 5, 0]])
    assert crop(drawn(), None).pixels.equal(drawn().pixels)


def test_mirrored() -> None:
    seen = mirror(drawn(), NAMES)
    check(seen, [[1, 3, 2], [0, 0, 5]])
    assert seen.proposals.tolist() == [[50, 0, 60, 10], [0, 30, 10, 40]]
    check(mirror(drawn()), [[1, 2, 3], [0, 5, 0]])  # nothing is known of the keypoints


def test_mirrored_twice_is_the_same() -> None:
    seen, again = drawn(), mirror(mirror(drawn(), NAMES), NAMES)
    assert again.masks is not None
    assert again.keypoints is not None
    assert seen.masks is not None
    assert seen.keypoints is not None
    pairs = [(seen.pixels, again.pixels), (seen.masks, again.masks)]
    pairs += [(seen.truth.boxes, again.truth.boxes), (seen.keypoints, again.keypoints)]
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("window", "labels", "keypoints"),
    [
        ((0, 0, 40, 60), [1, 2], [[1, 2, 3], [0, 5, 0]]),
        ((5, 4, 35, 22), [1], [[1, 2, 3]]),
        ((10, 5, 30, 50), [1, 2], [[0, 0, 3], [0, 5, 0]]),
        ((22, 30, 18, 28), [2], [[0, 0, 0]]),
        ((0, 57, 5, 3), [], []),
    ],
)
def test_cut(window: Window, labels: list[int], keypoints: list[list[int]]) -> None:
    top, left, height, width = window
    seen = crop(drawn(), window)
    assert seen.size == (height, width)
    assert seen.truth.labels.tolist() == labels
    check(seen, keypoints)
    assert seen.pixels.equal(drawn().pixels[:, top : top + height, left : left + width])


def test_without_masks_and_keypoints() -> None:
    plain = replace(drawn(), masks=None, keypoints=None)
    for seen in (mirror(plain, NAMES), crop(plain, (5, 4, 35, 22))):
        assert seen.masks is None
        assert seen.keypoints is None


def test_other_sides() -> None:
    others = [number + (1 if number % 2 else -1) for number in range(1, 17)]
    assert other_sides(PERSON.split()) == [0, *others]
    assert other_sides(("LeftHand", "RightHand", "bright spot", "left_only")) == [1, 0, 2, 3]
    assert other_sides(("LEFT_EYE", "RIGHT_EYE", "l_ear", "R-ear", "r_ear")) == [1, 0, 4, 3, 2]
    assert other_sides(("left_eye", "left_eye", "right_eye", "tail")) == [2, 1, 0, 3]
    assert other_sides(()) == []


def test_keypoints_at_the_border() -> None:
    """0 is the middle of the first pixel: the image ends half a pixel after the last."""
    places = [(-0.4, 5), (59.4, 5), (59.6, 5), (5, -0.6), (5, 39.4), (5, 39.6)]
    points = torch.tensor([[(x, y, 2.0) for x, y in places]])
    one = replace(
        drawn().only(torch.tensor([True, False]), torch.zeros(2).bool()), keypoints=points
    )
    kept = [True, True, False, False, True, False]
    for seen in (one, mirror(one)):
        whole = crop(seen, (0, 0, 40, 60)).keypoints
        assert whole is not None
        assert (whole[0, :, 2] > 0).tolist() == kept
        assert torch.equal(whole[0, ~torch.tensor(kept)], torch.zeros(3, 3))


@needs_data
def test_a_girl_in_a_mirror() -> None:
    """Who faces the camera has the left eye further right, and so has the one in the mirror."""
    dataset = open_dataset(DATA / "coco_person", "val")
    (record,) = (one for one in dataset.records if one.image_id == "162415")
    seen = seen_of(record, read_image(record.path))
    left, right = (dataset.keypoint_names.index(f"{side}_eye") for side in ("left", "right"))
    for one in (seen, mirror(seen, dataset.keypoint_names)):
        assert one.keypoints is not None
        assert one.masks is not None
        assert one.keypoints[0, left, 0] > one.keypoints[0, right, 0] > 0
        for x, y, there in one.keypoints[0, [left, right]].tolist():
            assert there
            assert one.masks[0, int(y), int(x)]
