"""Learning rates by value."""

import math

import pytest

from rcnnpipe.errors import SettingError
from rcnnpipe.systems.rcnn import Solver
from rcnnpipe.training.finetuning import schedule_of
from rcnnpipe.training.schedules import cosine, steps, warmed_up


def test_a_cosine_falls_to_nothing() -> None:
    schedule = cosine(0.2, 100)
    assert [schedule(i) for i in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0.0])
    assert schedule(25) == pytest.approx(0.1 * (1 + math.sqrt(0.5)))
    assert schedule(99) == pytest.approx(0.2 * math.sin(math.pi / 200) ** 2)
    rates = [schedule(i) for i in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert cosine(0.2, 0)(0) == 0.2  # asked for by no iteration
    with pytest.raises(SettingError, match="above 0"):
        cosine(0.0, 10)


def test_a_warm_up_grows_from_a_third() -> None:
    schedule = warmed_up(steps(0.6, 8, 0.5), 4)
    expected = [0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.3]
    assert [schedule(i) for i in range(9)] == pytest.approx(expected)
    plain = steps(0.6, 8, 0.5)
    assert warmed_up(plain, 0) is plain
    both = warmed_up(cosine(1.0, 100), 50)
    assert both(10) == pytest.approx(cosine(1.0, 100)(10) * (1 / 3 + 2 / 3 * 0.2))
    assert both(60) == cosine(1.0, 100)(60)


def test_a_solver_has_the_papers_steps_unless_told_otherwise() -> None:
    assert [schedule_of(Solver())(i) for i in (0, 19_999, 20_000)] == pytest.approx(
        [1e-3, 1e-3, 1e-4]
    )
    schedule = schedule_of(Solver(iterations=30, schedule="cosine", warm_up=3))
    assert schedule(0) == pytest.approx(1e-3 / 3)
    assert schedule(15) == pytest.approx(5e-4)
    with pytest.raises(SettingError, match="--warm-up 500 is more than all 30 iterations; lower"):
        schedule_of(Solver(iterations=30, warm_up=500))
    schedule_of(Solver(iterations=0, warm_up=500))
