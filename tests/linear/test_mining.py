from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rcnnpipe.errors import ArtifactError
from rcnnpipe.linear.cache import ImageRows
from rcnnpipe.linear.mining import Detector, Mining, train_detectors
from rcnnpipe.linear.store import RowStore
from rcnnpipe.linear.svm import Costs, Examples, Solution, solve_dual, solve_liblinear
from tests.reference import svm as reference

Array = np.ndarray[Any, Any]
SCALE = 2.0
WIDTH, CLASSES, IMAGES, ROWS = 48, 3, 12, 25


def drawn_images(seed: int = 0) -> list[ImageRows]:
    """Regions of noise; each image's first rows are objects, which overlap themselves by 1."""
    random = np.random.default_rng(seed)
    means = 1.5 * random.standard_normal((CLASSES, WIDTH))
    images, first = [], 0
    for image in range(IMAGES):
        rows = ROWS + image % 3
        features = 1.5 * random.standard_normal((rows, WIDTH)) + 0.3
        overlaps = random.random((rows, CLASSES)) ** 3
        for row in range(2):
            label = (image + row) % CLASSES
            features[row] += means[label]
            overlaps[row] = 0.1
            overlaps[row, label] = 1
        features[5:10] += 0.5 * means[image % CLASSES]
        kept = np.maximum(features, 0).astype(np.float16)
        images.append(ImageRows(first, kept, overlaps.astype(np.float32)))
        first += rows
    return images


def positives_of(images: list[ImageRows]) -> list[Array]:
    found: list[list[Array]] = [[] for _ in range(CLASSES)]
    for number, image in enumerate(images):
        for row in range(2):
            found[(number + row) % CLASSES].append(image.features[row])
    return [np.stack(rows) for rows in found]


class Recorder:
    """A solver that remembers what it was given last, by the number of positives' first value."""

    def __init__(self, solver: str = "dual") -> None:
        self.last: dict[float, Array] = {}
        self.solver = solver

    def __call__(self, examples: Examples, alphas: npt.NDArray[np.float64], last: bool) -> Solution:
        self.last[float(examples.dense()[0].sum())] = examples.dense()
        if self.solver == "liblinear":
            return solve_liblinear(examples, Costs())
        return solve_dual(examples, Costs(), alphas=alphas, tolerance=1e-6)


def train(
    images: list[ImageRows],
    positives: list[Array] | None = None,
    mining: Mining | None = None,
    solve: Recorder | None = None,
    workers: int = 1,
) -> list[Detector]:
    return train_detectors(
        lambda: iter(images),
        positives_of(images) if positives is None else positives,
        solve or Recorder(),
        scale=SCALE,
        mining=mining,
        workers=workers,
    )


@pytest.mark.parametrize("solver", ["dual", "liblinear"])
@pytest.mark.parametrize("retrain_after", [3, 15, 2000])
def test_mining_is_the_authors_loop(retrain_after: int, solver: str) -> None:
    images = drawn_images()
    recorder = Recorder(solver)
    detectors = train(images, mining=Mining(retrain_after=retrain_after), solve=recorder)
    plain = [(SCALE * image.features.astype(np.float64), image.overlaps) for image in images]
    for number, (found, rows) in enumerate(zip(detectors, positives_of(images), strict=True)):
        scaled = SCALE * rows.astype(np.float64)
        weights, bias, keys, fits = reference.mine(
            plain, scaled, number, retrain_after=retrain_after
        )
        last = recorder.last[float((SCALE * rows[0].astype(np.float32)).sum())]
        negatives = {row.tobytes() for row in last[len(rows) :]}
        expected = {plain[i][0][row].astype(np.float32).tobytes() for i, row in keys}
        if fits == found.fits:
            assert negatives == expected
        # Where the last image makes a fit due, ours is followed by the exact one.
        assert found.fits - fits in (0, 1)
        signs = np.array([1] * len(rows) + [-1] * len(keys))
        examples = np.concatenate([scaled, *(plain[i][0][row][None] for i, row in keys)])
        least = reference.objective(weights, bias, examples, signs)
        close = 1e-5 if solver == "dual" else 1e-3
        assert found.objective == pytest.approx(least, rel=close)
        np.testing.assert_allclose(found.weights, weights, atol=20 * close * np.abs(weights).max())
        assert found.bias == pytest.approx(bias, abs=50 * close)
        assert found.positives == len(rows)
        assert found.negatives_seen == sum((o[:, number] < 0.3).sum() for _, o in plain)


def test_workers_change_nothing() -> None:
    images = drawn_images(1)
    found = [train(images, mining=Mining(retrain_after=5), workers=n) for n in (1, 3)]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one.weights, two.weights)
        assert (one.bias, one.objective, one.fits) == (two.bias, two.objective, two.fits)


def test_further_passes_find_what_the_first_left() -> None:
    images = drawn_images(2)

    def violations(detectors: list[Detector]) -> int:
        total = 0
        for number, one in enumerate(detectors):
            for image in images:
                scores = SCALE * image.features.astype(np.float32) @ one.weights + one.bias
                total += int(((scores > -1) & (image.overlaps[:, number] < 0.3)).sum())
        return total

    passes = []

    def counted() -> Iterable[ImageRows]:
        passes.append(1)
        return iter(images)

    mining = Mining(passes=50, retrain_after=3)
    settled = train_detectors(counted, positives_of(images), Recorder(), scale=SCALE, mining=mining)
    assert 1 < len(passes) < 50
    # When a pass brings nothing new, the SVM is that of all negatives at once.
    for number, one in enumerate(settled):
        rows = [positives_of(images)[number]]
        rows += [image.features[image.overlaps[:, number] < 0.3] for image in images]
        everything = np.concatenate(rows)
        signs = np.where(np.arange(len(everything)) < len(rows[0]), 1.0, -1.0)
        examples = Examples(everything, np.arange(len(everything)), signs, SCALE)
        whole = solve_dual(examples, Costs(), tolerance=1e-6)
        assert one.objective == pytest.approx(whole.objective, rel=1e-3)
        assert one.negatives_seen == len(passes) * int((signs < 0).sum())
    assert violations(settled) <= violations(train(images))


def test_a_class_without_positives_or_negatives_gets_no_svm() -> None:
    images = drawn_images(3)
    for image in images:
        image.overlaps[:, 2] = 0.9
    positives = positives_of(images)
    positives[1] = positives[1][:0]
    first, second, third = train(images, positives)
    assert first.fits > 0
    for one in (second, third):
        assert one.fits == 0
        assert one.bias == -np.inf
        assert not one.weights.any()
        assert np.isnan(one.average_precision)
    assert (second.positives, third.positives) == (0, len(positives[2]))
    # The others are what they would be without it.
    alone = train(images, [positives[0], positives[1], positives[1]])[0]
    np.testing.assert_array_equal(first.weights, alone.weights)


def test_mining_starts_where_the_negatives_do() -> None:
    images = drawn_images(4)
    images[0].overlaps[:] = 0.5
    found = train(images)
    assert all(one.fits > 0 for one in found)
    later = train(images[1:], positives_of(images))
    for one, two in zip(found, later, strict=True):
        np.testing.assert_array_equal(one.weights, two.weights)


def test_features_that_are_no_numbers_are_refused() -> None:
    images = drawn_images(5)
    for wrong in (np.inf, -np.inf, np.nan):
        images[3].features[4, 0] = wrong
        with pytest.raises(ArtifactError, match=f"row {images[3].first + 4} hold"):
            train(images)


def test_training_average_precision_ranks_positives_against_the_cache() -> None:
    images = drawn_images(6)
    positives = positives_of(images)
    # A positive that is a copy of a negative cannot stand above it.
    positives[0] = np.concatenate([positives[0], images[0].features[15:16]])
    images[0].overlaps[15] = 0
    recorder = Recorder()
    found = train(images, positives, solve=recorder)
    for one, rows in zip(found, positives, strict=True):
        examples = recorder.last[float((SCALE * rows[0].astype(np.float32)).sum())]
        scores = examples @ one.weights + one.bias
        above = []  # precision where each positive stands, among equals last
        for score in scores[: len(rows)] - 1e-5:
            better = scores > score
            above.append(better[: len(rows)].sum() / better.sum())
        # Precision at a recall is the best at any higher one.
        expected = np.mean(np.maximum.accumulate(np.sort(above)))
        assert one.average_precision == pytest.approx(expected, abs=0.02)
    assert found[0].average_precision < 0.95 < found[1].average_precision


def test_the_store_keeps_a_shared_row_once_and_as_long_as_it_is_held() -> None:
    store = RowStore(2, np.float32)
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    places = store.hold(np.array([10, 11, 12]), rows[:3], np.array([1, 2, 1]))
    again = store.hold(np.array([12, 13]), rows[2:], np.array([1, 1]))
    assert again[0] == places[2]
    assert len(store) == 4
    np.testing.assert_array_equal(store.rows[places], rows[:3])
    np.testing.assert_array_equal(store.rows[again], rows[2:])
    store.release(places)
    assert len(store) == 3
    before = len(store.rows)
    fresh = store.hold(np.array([20]), rows[:1], np.array([1]))
    assert fresh[0] == places[0]
    assert len(store.rows) == before
    many = store.hold(np.arange(100, 400), np.ones((300, 2), np.float32), np.ones(300, np.int64))
    assert len(set(many.tolist())) == 300
    np.testing.assert_array_equal(store.rows[again], rows[2:])
    np.testing.assert_array_equal(store.rows[places[1]], rows[1])
