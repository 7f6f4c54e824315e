import numpy as np
import pytest
from scipy.io import loadmat

from rcnnpipe.images import read_image
from rcnnpipe.proposals import selective_search
from rcnnpipe.proposals.ranking import Proposed, distinct, take_best
from rcnnpipe.proposals.scaling import propose_at_width
from rcnnpipe.proposals.selective_search import STRATEGIES, Strategy, hierarchies, propose
from rcnnpipe.randomness import generator
from tests.realdata import DATA, needs_data

FAST, QUALITY = STRATEGIES["fast"], STRATEGIES["quality"]


def scene(size: tuple[int, int] = (80, 110), seed: int = 0) -> np.ndarray:
    """Noisy ground with a red and a blue rectangle."""
    noise = np.random.default_rng(seed).integers(-12, 13, (*size, 3))
    image = np.full((*size, 3), 120) + noise
    image[10:50, 15:60] = (200, 40, 40) + noise[10:50, 15:60]
    image[40:75, 70:105] = (30, 60, 210) + noise[40:75, 70:105]
    return image.clip(0, 255).astype(np.uint8)


def overlap(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(T,) best intersection over union of each true box, by numpy alone."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, truth)]
    best: np.ndarray = (common / (areas[0][:, None] + areas[1][None] - common)).max(axis=0)
    return best


def check_boxes(proposed: Proposed, size: tuple[int, int], min_size: float = 20) -> None:
    boxes, scores = proposed
    assert boxes.dtype == scores.dtype == np.float32
    assert boxes.shape == (len(scores), 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (size[1], size[0])).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert (np.diff(scores) < 0).all()
    assert len(scores) == 0 or (scores[0] == 1 and scores[-1] > 0)


@pytest.mark.parametrize("strategy", [FAST, QUALITY])
def test_the_objects_of_a_drawn_scene_are_found_exactly(strategy: Strategy) -> None:
    proposed = propose(scene(), generator(0, "test"), strategy=strategy)
    check_boxes(proposed, (80, 110))
    truth = np.array([[15, 10, 60, 50], [70, 40, 105, 75]])
    assert overlap(proposed.boxes, truth).min() > 0.9


def test_equal_seeds_give_equal_boxes_and_others_another_order() -> None:
    first, again, other = (propose(scene(), generator(seed, "test")) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert (first.boxes != other.boxes).any()
    assert {tuple(box) for box in first.boxes} == {tuple(box) for box in other.boxes}


def test_strategies_are_the_sheets() -> None:
    def number(strategy: Strategy) -> int:
        sides = (strategy.colour_spaces, strategy.scales, strategy.similarities)
        return int(np.prod([len(side) for side in sides]))

    # rcnn.md section 3 says 4 x 5 x 4 = 80 hierarchies of quality mode, 2 x 2 x 2 of fast mode.
    assert (number(FAST), number(QUALITY)) == (8, 80)


def test_priorities_count_from_the_last_merge() -> None:
    strategy = Strategy(("hsv",), (50,), FAST.similarities)
    boxes, priorities = hierarchies(scene(), strategy)
    segments = priorities.max()  # also the number of initial segments, whose priority it is
    assert segments > 3
    merges = [*range(segments - 1, 0, -1)]
    assert priorities.tolist() == merges + merges + [segments] * segments
    np.testing.assert_array_equal(boxes[priorities == 1], [[0, 0, 110, 80]] * 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (20, 20), (20, 300), (19, 400)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    proposed = propose(image, generator(0, "test"))
    check_boxes(proposed, size)
    assert (len(proposed.boxes) > 0) == (min(size) >= 20)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_uniform_image_is_one_box(value: int) -> None:
    proposed = propose(np.full((40, 60, 3), value, np.uint8), generator(0, "test"))
    assert proposed.boxes.tolist() == [[0, 0, 60, 40]]


def test_a_grey_image_works_through_its_intensity() -> None:
    grey = np.repeat(scene().mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    proposed = propose(grey, generator(0, "test"))
    assert overlap(proposed.boxes, np.array([[70, 40, 105, 75]])).min() > 0.9


def test_views_and_read_only_images_are_taken() -> None:
    image = scene()
    turned = image[::-1, ::-1][::-1, ::-1]
    image.setflags(write=False)
    expected = propose(image, generator(0, "test")).boxes
    np.testing.assert_array_equal(propose(turned, generator(0, "test")).boxes, expected)


def test_max_boxes_keeps_the_best() -> None:
    many = propose(scene(), generator(0, "test"))
    few = propose(scene(), generator(0, "test"), max_boxes=3)
    np.testing.assert_array_equal(few.boxes, many.boxes[:3])
    np.testing.assert_allclose(few.scores, [1, 2 / 3, 1 / 3])


def test_another_width_is_mapped_back() -> None:
    image = scene()
    proposed = propose_at_width(image, generator(0, "test"), proposer=propose, width=220)
    assert (proposed.boxes[:, 2:] <= (110, 80)).all()
    assert (proposed.boxes % 0.5 == 0).all()  # whole pixels of twice the width
    assert overlap(proposed.boxes, np.array([[15, 10, 60, 50]])).min() > 0.9


def test_ranking_draws_drops_and_keeps_the_first() -> None:
    boxes = np.array([[0, 0, 30, 30], [0, 0, 5, 30], [0, 0, 30, 30], [1, 1, 40, 40]])

    class Draws:
        def random(self, number: int) -> np.ndarray:
            return np.array([0.9, 0.1, 0.2, 0.5])  # times 1, 1, 3, 1: 0.9, 0.1, 0.6, 0.5

    ranked = take_best(boxes, np.array([1, 1, 3, 1]), Draws(), 10, 20)  # type: ignore[arg-type]
    assert ranked.boxes.tolist() == [[1, 1, 40, 40], [0, 0, 30, 30]]


@pytest.mark.parametrize("scale", [1, 0.5, 100_000])
def test_distinct_rows_by_either_way(scale: float) -> None:
    rows = (np.array([[3, 1, 4, 1], [1, 2, 3, 4], [3, 1, 4, 1], [0, 2, 3, 4]]) * scale).astype(
        float if scale == 0.5 else np.int64
    )
    assert distinct(rows).tolist() == [0, 1, 3]
    assert distinct(rows[:0]).tolist() == []


@needs_data
@pytest.mark.parametrize("name", ["000004", "001551"])
def test_published_boxes_are_covered(name: str) -> None:
    """They come from an older build, which even the authors' released code does not repeat."""
    image = read_image(DATA / "ss_reference" / f"{name}.jpg")
    published = loadmat(DATA / "ss_reference" / f"{name}_boxes.mat")["boxes"].astype(float)
    published[:, 2:] += 1  # its last pixel is inside
    large = published[((published[:, 2:] - published[:, :2]) >= 20).all(axis=1)]
    ours = propose(image, generator(0, "propose", name), max_boxes=100_000).boxes
    assert 1 < len(ours) / len(large) < 1.6  # 2541 of 2011, 2171 of 1510
    covered = overlap(ours, large)
    assert covered.mean() > 0.8  # 0.822, 0.841
    assert (covered >= 0.5).mean() > 0.95  # 0.976, 0.981
    assert overlap(large, ours).mean() > 0.75  # 0.774, 0.781


def test_compiling_beforehand_is_done_once() -> None:
    selective_search.compile_functions()
    before = selective_search.compile_functions.cache_info().hits
    selective_search.compile_functions()
    assert selective_search.compile_functions.cache_info().hits == before + 1
