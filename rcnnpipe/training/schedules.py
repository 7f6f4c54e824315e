"""Learning-rate schedules: functions from the iteration, counted from 0, to the base rate."""

import math
from collections.abc import Callable

from rcnnpipe.errors import SettingError

Schedule = Callable[[int], float]

WARM_UP_FROM = 1 / 3  # Goyal et al. 2017, 2.2, as Detectron has it: SOLVER.WARM_UP_FACTOR


def steps(rate: float, step: int, gamma: float) -> Schedule:
    """``rate * gamma ** (iteration // step)``: Caffe's "step" policy.

    Args:
        rate: in the first ``step`` iterations.
        step: iterations between two changes; 0 keeps the rate.
        gamma: factor of each change.
    """
    if rate <= 0 or gamma <= 0 or step < 0:
        raise SettingError(
            f"learning rate {rate} and gamma {gamma} must be above 0, the step {step} at least 0"
        )
    return lambda iteration: rate * gamma ** (iteration // step) if step else rate


def cosine(rate: float, iterations: int) -> Schedule:
    """From ``rate`` to 0 after ``iterations``, along half a cosine; Loshchilov & Hutter 2017, 3.

    Args:
        rate: of iteration 0.
        iterations: the first one that would have a rate of 0.
    """
    if rate <= 0 or iterations < 0:
        raise SettingError(
            f"learning rate {rate} must be above 0, the iterations {iterations} at least 0"
        )
    return lambda iteration: rate * (1 + math.cos(math.pi * iteration / max(iterations, 1))) / 2


def warmed_up(schedule: Schedule, iterations: int, start: float = WARM_UP_FROM) -> Schedule:
    """A schedule whose first rates are lower: Detectron's linear warm-up.

    Args:
        schedule: followed as it is from ``iterations`` on.
        iterations: in which the factor of its rate grows linearly from ``start`` to 1.
        start: the factor of iteration 0.
    """

    def rate_of(iteration: int) -> float:
        done = iteration / iterations if iteration < iterations else 1.0
        return schedule(iteration) * (start * (1 - done) + done)

    return rate_of if iterations else schedule
