import numpy as np
import pytest

from rcnnpipe.proposals.windows import propose, windows_of
from rcnnpipe.randomness import generator
from tests.proposals.test_selective_search import check_boxes


def test_windows_of_one_level_step_by_a_quarter() -> None:
    boxes, levels = windows_of((40, 40), aspect_ratios=(1.0,), min_size=20, levels_per_octave=1)
    # Level 1 is the image (listed twice: the image itself, and the window of its area), level 2 has
    # side 20: starts 0, 5, ..., 20 in either direction.
    assert levels.tolist() == [1, 1] + [2] * 25
    assert sorted({int(x) for x in boxes[levels == 2, 0]}) == [0, 5, 10, 15, 20]
    assert ((boxes[levels == 2, 2:] - boxes[levels == 2, :2]) == 20).all()


@pytest.mark.parametrize("size", [(1, 1), (30, 500), (333, 500)])
def test_windows_are_boxes_of_the_image(size: tuple[int, int]) -> None:
    proposed = propose(np.zeros((*size, 3), np.uint8), generator(0, "test"), max_boxes=500)
    check_boxes(proposed, size)
    assert (len(proposed.boxes) > 0) == (min(size) >= 20)


def test_every_large_box_has_a_window_near_it() -> None:
    boxes, _ = windows_of((300, 400))
    truth = np.array([57.0, 33.0, 203.0, 190.0])
    low, high = np.maximum(boxes[:, :2], truth[:2]), np.minimum(boxes[:, 2:], truth[2:])
    common = (high - low).clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert (common / (areas + (truth[2:] - truth[:2]).prod() - common)).max() > 0.65


def test_less_overlap_gives_fewer_windows() -> None:
    assert len(windows_of((300, 400), overlap=0.5)[0]) < len(windows_of((300, 400))[0]) / 2


def test_windows_end_at_a_pixel() -> None:
    boxes, _ = windows_of((3, 4), min_size=0)
    assert (boxes[:, 2:] - boxes[:, :2]).min() == 1
