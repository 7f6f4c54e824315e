import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rcnnpipe.proposals import histograms, segmentation
from rcnnpipe.proposals.smoothing import smooth
from tests.reference import selective_search as reference


def random_planes(seed: int, channels: int, size: tuple[int, int] = (11, 14)) -> np.ndarray:
    """Blocks of colour under noise, so that segments of all sizes appear."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (channels, 4, 5)).repeat(3, 1).repeat(3, 2)
    noise = generator.integers(-20, 21, blocks.shape)
    return (blocks + noise).clip(0, 255).astype(np.uint8)[:, : size[0], : size[1]]


def test_smooth_equals_scipys_gaussian() -> None:
    planes = random_planes(0, 3)
    expected = [
        gaussian_filter(plane.astype(float), 0.8, mode="nearest", radius=4) for plane in planes
    ]
    np.testing.assert_allclose(smooth(planes, 0.8), expected, atol=2e-4)


def test_edges_are_sorted_as_the_reference_sorts_them() -> None:
    smoothed = smooth(random_planes(1, 3), 0.8)
    found = segmentation.sorted_edges(smoothed)
    expected = reference.edges(smoothed)
    np.testing.assert_array_equal(found.weights, [edge[0] for edge in expected])
    np.testing.assert_array_equal(found.codes // 4, [edge[4] for edge in expected])
    np.testing.assert_array_equal(found.codes % 4, [edge[2] for edge in expected])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("channels", [1, 3])
def test_segments_equal_the_reference(seed: int, channels: int) -> None:
    smoothed = smooth(random_planes(seed, channels), 0.8)
    edges = segmentation.sorted_edges(smoothed)
    counts = []
    for k, min_size in ((5, 1), (40, 4), (200, 20)):
        found = segmentation.segment(edges, k, min_size)
        expected = reference.segment(smoothed, k, min_size)
        np.testing.assert_array_equal(found.labels, expected)
        np.testing.assert_array_equal(found.sizes, np.bincount(expected.ravel()))
        assert {tuple(pair) for pair in found.neighbours.tolist()} == reference.neighbours(expected)
        assert len(found.neighbours) == len(reference.neighbours(expected))
        for label, box in enumerate(found.boxes):
            rows, columns = np.nonzero(expected == label)
            edge = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert tuple(box) == edge
        counts.append(len(found.sizes))
    assert counts[0] > counts[1] > counts[2]  # the cases differ


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (2, 2)])
def test_images_of_few_pixels_are_one_segment(size: tuple[int, int]) -> None:
    planes = np.arange(size[0] * size[1], dtype=np.uint8).reshape(1, *size)
    found = segmentation.segment(segmentation.sorted_edges(smooth(planes, 0.8)), 50, 50)
    assert found.labels.tolist() == np.zeros(size, int).tolist()
    assert found.boxes.tolist() == [[0, 0, size[1], size[0]]]
    assert len(found.neighbours) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_histograms_equal_the_reference(channels: int) -> None:
    planes = random_planes(3, channels)
    smoothed = smooth(planes, 0.8)
    labels = reference.segment(smoothed, 20, 5)
    found = histograms.count(histograms.code(planes, smoothed), labels, labels.max() + 1)
    expected = reference.histograms(planes, smoothed, labels)
    # The reference takes sines where the fast one adds: a few derivatives round the other way.
    assert np.abs(found - expected).sum() <= 0.002 * expected.sum()
    colours = 25 * channels
    np.testing.assert_array_equal(found[:, :colours], expected[:, :colours])
    sizes = np.bincount(labels.ravel())
    for start in range(colours, found.shape[1], 10):
        np.testing.assert_array_equal(found[:, start : start + 10].sum(axis=1), sizes)


def test_a_ramp_rises_to_the_right() -> None:
    # 12 levels a pixel: the middle column's derivative is 12 along 0 degrees, 12 / sqrt 2 = 8.5
    # along 45 and 315. Bins are 0.43 * 255 / 9 = 12.18 wide, centred: 12 -> 1, 8.5 -> 1, 0 -> 0.
    planes = np.tile(np.arange(9, dtype=np.uint8) * 12, (1, 5, 1))
    labels = np.zeros((5, 9), np.int32)
    labels[2, 4] = 1
    codes = histograms.code(planes, planes.astype(np.float32))
    texture = histograms.count(codes, labels, 2)[1, 25:].reshape(8, 10)
    degrees = [0, 180, 45, 225, 90, 270, 135, 315]
    rising = {angle for angle, bins in zip(degrees, texture, strict=True) if bins[1] == 1}
    assert rising == {0, 45, 315}
    assert texture[:, 0].sum() == 5
