"""Box arithmetic: the sheets' vectors, round trips, and a slow reference."""

import pytest
import torch

from rcnnpipe import boxes


def inclusive(*corners: float) -> torch.Tensor:
    """A 1-based inclusive box in the project's convention."""
    x1, y1, x2, y2 = corners
    return torch.tensor([[x1 - 1, y1 - 1, x2, y2]])


REGION, TARGET = inclusive(100, 100, 199, 299), inclusive(110, 90, 229, 289)


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        (
            1.0,
            [0.202020, -0.050251, 0.184004, 0],
        ),  # x2 - x1 of inclusive corners, as the authors do
        (0.0, [0.2, -0.05, 0.182322, 0]),  # "+1" widths
    ],
)
def test_encode_by_value(pixel: float, expected: list[float]) -> None:
    deltas = boxes.encode(REGION, TARGET, pixel)
    torch.testing.assert_close(deltas, torch.tensor([expected]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_decode_inverts_encode(pixel: float) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((500, 2, 2), generator=generator) * 400
    regions = torch.cat((corners[:, 0], corners[:, 0] + 2 + corners[:, 1]), dim=1)
    targets = regions.roll(1, dims=0)
    moved = boxes.decode(regions, boxes.encode(regions, targets, pixel), pixel)
    torch.testing.assert_close(moved, targets, atol=2e-3, rtol=0)


def test_iou_by_value() -> None:
    first, second = inclusive(100, 100, 199, 299), inclusive(110, 90, 229, 289)
    assert boxes.iou(first, second).item() == pytest.approx(0.635688, abs=1e-6)


def test_clip_keeps_a_pixel() -> None:
    given = torch.tensor([[-5.0, 2, 700, 9], [600, 500, 700, 900], [-9, -9, -3, -3]])
    expected = torch.tensor([[0.0, 2, 500, 9], [499, 374, 500, 375], [0, 0, 1, 1]])
    torch.testing.assert_close(boxes.clip(given, (375, 500)), expected)


def test_cut_tells_which_boxes_are_left() -> None:
    given = [[-5, 2, 4, 30], [50, 2, 60, 9], [1, 1, 1.5, 9], [1, 1, 9, 1.5], [2, 2, 2, 9]]
    found, left = boxes.cut(torch.tensor(given), (20, 40), (0.5, 1.0))
    assert found[0].tolist() == [0, 2, 4, 20]
    assert left.tolist() == [True, False, True, False, False]
    assert boxes.cut(torch.tensor(given), (20, 40))[1].tolist() == [True, False, True, True, False]
