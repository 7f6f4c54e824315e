import numpy as np
import pytest
import torch

from rcnnpipe.artifacts.bbox_reg import BboxReg
from rcnnpipe.linear import ridge as ridge_module
from rcnnpipe.linear.ridge import (
    BoxRefiner,
    paired_overlaps,
    ridge,
    train_regressor,
    whitening_of,
)
from tests.artifacts_made import header
from tests.reference import ridge as reference


@pytest.mark.parametrize(("count", "width"), [(7, 30), (30, 30), (31, 30), (100, 30), (1, 3)])
def test_ridge_solves_the_normal_equations_from_either_side(count: int, width: int) -> None:
    random = np.random.default_rng(count)
    rows = random.standard_normal((count, width)).astype(np.float16)
    targets = random.standard_normal((count, 4))
    weights, biases = ridge(rows, targets, penalty=3.0, scale=1.7)
    expected = reference.ridge(1.7 * rows.astype(np.float64), targets, 3.0)
    np.testing.assert_allclose(weights, expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(biases, expected[1], rtol=1e-9, atol=1e-12)


def test_ridge_adds_up_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((57, 9)).astype(np.float32)
    targets = random.standard_normal((57, 4))
    monkeypatch.setattr(ridge_module, "_BLOCK", 10)
    weights, biases = ridge(rows, targets, penalty=2.0)
    expected = reference.ridge(rows, targets, 2.0)
    np.testing.assert_allclose(weights, expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(biases, expected[1], rtol=1e-9)


def test_the_constant_is_penalised() -> None:
    # One example of value 0 whose target is 1: b (1 + lambda) = 1.
    weights, biases = ridge(np.zeros((1, 2), np.float32), np.ones((1, 4)), penalty=1000.0)
    np.testing.assert_allclose(biases, 1 / 1001)
    assert not weights.any()


def test_whitening_is_the_inverse_root_of_the_biased_covariance() -> None:
    random = np.random.default_rng(1)
    targets = random.standard_normal((50, 4)) @ random.standard_normal((4, 4)) + [1, 2, 3, 4]
    whitening = whitening_of(targets)
    covariance = np.cov(targets.T, bias=True) + 0.001 * np.eye(4)
    expected = reference.inverse_square_root(covariance)
    np.testing.assert_allclose(whitening.transform, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whitening.mean, targets.mean(axis=0))
    whitened = whitening.apply(targets)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(4), atol=0.05)
    np.testing.assert_allclose(whitening.invert(whitened), targets, rtol=1e-9)


def test_one_example_can_be_whitened() -> None:
    whitening = whitening_of(np.array([[0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_allclose(whitening.transform, np.eye(4) / np.sqrt(0.001))


# The sheet's pair P, G: 1-based inclusive (100, 100, 199, 299) and (110, 90, 229, 289).
P, G = np.array([[99.0, 99, 199, 299]]), np.array([[109.0, 89, 229, 289]])


@pytest.mark.parametrize(
    ("pixel", "deltas"),
    [(1.0, (0.202020, -0.050251, 0.184004, 0)), (0.0, (0.2, -0.05, 0.182322, 0))],
)
def test_targets_are_the_authors(pixel: float, deltas: tuple[float, ...]) -> None:
    # Without features only the constant is left; without whitening and penalty it is the target.
    found = train_regressor(
        np.zeros((1, 3), np.float16),
        P,
        G,
        scale=1.0,
        penalty=1e-9,
        whiten=False,
        pixel=pixel,
    )
    np.testing.assert_allclose(found.bias, deltas, atol=1e-6)
    if pixel:
        inclusive = (P[0] + np.array([1, 1, 0, 0]), G[0] + np.array([1, 1, 0, 0]))
        np.testing.assert_allclose(reference.targets(*inclusive), deltas, atol=1e-6)
    assert found.overlap_before == pytest.approx(0.635688, abs=1e-6)
    assert found.overlap_after == pytest.approx(1, abs=1e-5)


def moved_boxes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Features that say linearly how objects lie beside regions, within float16."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((count, 20)).astype(np.float16)
    deltas = features.astype(np.float64) @ random.standard_normal((20, 4)) * 0.03 + 0.05
    low = random.uniform(0, 100, (count, 2))
    regions = np.hstack([low, low + random.uniform(30, 90, (count, 2))])
    sizes = regions[:, 2:] - regions[:, :2] - 1
    centres = regions[:, :2] + 0.5 * sizes + deltas[:, :2] * sizes
    sizes = sizes * np.exp(deltas[:, 2:])
    return features, regions, np.hstack([centres - 0.5 * sizes, centres + 0.5 * sizes + 1])


@pytest.mark.parametrize("whiten", [True, False])
def test_a_linear_relation_is_learnt_and_applied(whiten: bool) -> None:
    pixel, scale = 1.0, 3.0
    classes = [moved_boxes(200, seed) for seed in (0, 1)]
    found = [
        train_regressor(*one, scale=scale, penalty=1e-3, whiten=whiten, pixel=pixel)
        for one in classes
    ]
    none = train_regressor(
        *(np.zeros((0, 20), np.float16), np.zeros((0, 4)), np.zeros((0, 4))), scale=scale
    )
    assert none.examples == 0
    for one in found:
        assert one.examples == 200
        assert one.overlap_before < 0.95
        assert one.overlap_after > 0.999
    trained = [*found, none]
    regression = BboxReg(
        header("bbox-reg", ("background", "a", "b", "c")),
        *("pool5", scale, pixel),
        weights=np.stack([one.weights for one in trained]),
        bias=np.stack([one.bias for one in trained]),
        mean=np.stack([one.whitening.mean for one in trained]),
        whitening=np.stack([one.whitening.transform for one in trained]),
        report={},
    )
    refiner = BoxRefiner(regression, torch.device("cpu"))
    assert refiner.layer == "pool5"
    features = torch.from_numpy(np.concatenate([classes[1][0], classes[0][0], classes[0][0]]))
    boxes = torch.from_numpy(np.concatenate([classes[1][1], classes[0][1], classes[0][1]])).float()
    labels = torch.tensor([2] * 200 + [1] * 200 + [3] * 200)
    moved = refiner(features, boxes, labels)
    goals = torch.from_numpy(np.concatenate([classes[1][2], classes[0][2], classes[0][1]]))
    np.testing.assert_allclose(moved, goals, atol=0.15)
    np.testing.assert_allclose(moved[400:], boxes[400:], atol=1e-3)  # class 3 has no examples
    assert refiner(features[:0], boxes[:0], labels[:0]).shape == (0, 4)


def test_paired_overlaps() -> None:
    first = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 4, 4]])
    second = torch.tensor([[1.0, 0, 3, 2], [2, 2, 3, 3], [1, 1, 3, 3]])
    # 2 of 6; apart; 4 of 16.
    np.testing.assert_allclose(paired_overlaps(first, second), [1 / 3, 0, 0.25])
