"""Learning-rate schedules: functions from the iteration, counted from 0, to the base rate."""

from collections.abc import Callable

from rcnnpipe.errors import SettingError

Schedule = Callable[[int], float]


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
