"""What an optimizer, clipping and averaging do to lists of numbers, one number after another."""

import math
from collections.abc import Sequence

Values = list[list[float]]  # of each parameter


def clipped(gradients: Values, limit: float) -> Values:
    """All gradients shortened together, so that their L2 norm is at most a limit."""
    norm = math.sqrt(sum(value * value for values in gradients for value in values))
    factor = min(1.0, limit / norm)
    return [[value * factor for value in values] for values in gradients]


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2."""

    def __init__(self, decays: Sequence[float], factors: Sequence[float]) -> None:
        self.decays, self.factors = decays, factors
        self.first: Values = []
        self.second: Values = []
        self.steps = 0

    def step(self, parameters: Values, gradients: Values, rate: float) -> Values:
        """The parameters after a step."""
        if not self.first:
            self.first = [[0.0] * len(values) for values in parameters]
            self.second = [[0.0] * len(values) for values in parameters]
        self.steps += 1
        after = []
        for number, (values, slopes) in enumerate(zip(parameters, gradients, strict=True)):
            own, moved = rate * self.factors[number], []
            for place, (value, slope) in enumerate(zip(values, slopes, strict=True)):
                first = 0.9 * self.first[number][place] + 0.1 * slope
                second = 0.999 * self.second[number][place] + 0.001 * slope * slope
                self.first[number][place], self.second[number][place] = first, second
                first /= 1 - 0.9**self.steps
                second /= 1 - 0.999**self.steps
                decayed = value - own * self.decays[number] * value
                moved.append(decayed - own * first / (math.sqrt(second) + 1e-8))
            after.append(moved)
        return after


def averaged(before: Values, values: Values, decay: float, iteration: int) -> Values:
    """A moving average after one more iteration, counted from 0."""
    kept = min(decay, (1 + iteration) / (10 + iteration))
    return [
        [kept * old + (1 - kept) * new for old, new in zip(olds, news, strict=True)]
        for olds, news in zip(before, values, strict=True)
    ]
