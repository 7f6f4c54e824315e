"""Smooth L1: the sheet's table, a slow reference, and its slope."""

import pytest
import torch

from rcnnpipe.models.losses import smooth_l1
from tests.reference import rpn as slow

# Faster R-CNN sheet, section 4: abs(x), sigma 3, sigma 1
TABLE = [(0.05, 0.01125, 0.00125), (0.1, 0.045, 0.005), (0.5, 0.4444, 0.125), (1.0, 0.9444, 0.5)]


@pytest.mark.parametrize(("x", "at_3", "at_1"), TABLE)
def test_values_are_the_sheets(x: float, at_3: float, at_1: float) -> None:
    both = torch.tensor([x, -x])
    assert smooth_l1(both, 1 / 9).tolist() == pytest.approx([at_3] * 2, abs=5e-5)
    assert smooth_l1(both, 1).tolist() == pytest.approx([at_1] * 2, abs=1e-7)


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_equals_the_slow_reference(sigma: float) -> None:
    values = torch.linspace(-3, 3, 601, dtype=torch.float64)
    found = smooth_l1(values, 1 / sigma**2)
    expected = [slow.smooth_l1(value, sigma) for value in values.tolist()]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_shape_is_kept_and_nothing_is_summed() -> None:
    assert smooth_l1(torch.zeros(3, 4), 1).shape == (3, 4)
    assert smooth_l1(torch.zeros(0, 4), 1).shape == (0, 4)


def test_the_slope_is_x_over_beta_and_no_more_than_1() -> None:
    values = torch.tensor([-2.0, -0.05, 0, 0.05, 2], requires_grad=True)
    (slope,) = torch.autograd.grad(smooth_l1(values, 1 / 9).sum(), values)
    assert slope.tolist() == pytest.approx([-1, -0.45, 0, 0.45, 1])


def test_a_beta_of_0_is_the_absolute_value() -> None:
    values = torch.tensor([-2.0, 0, 0.5], requires_grad=True)
    found = smooth_l1(values, 0)
    assert found.tolist() == [2, 0, 0.5]
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert slope.tolist() == [-1, 0, 1]
