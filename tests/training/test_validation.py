"""Judging while training: when, what is kept, when it ends, and that training does not notice."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rcnnpipe.training.average import Average
from rcnnpipe.training.loop import Trainer, train
from rcnnpipe.training.schedules import steps
from rcnnpipe.training.validation import Array, Validation
from tests.training.test_loop import ALONE, batches, equal, loss_of, network_of, run, state_of

SCORES = (0.1, 0.3, 0.2, 0.3, 0.25, 0.4)


class Held:
    """A network as something with values for a file."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def tensors(self) -> dict[str, Array]:
        return {name: value.numpy() for name, value in self.network.state_dict().items()}


class Scripted:
    """Gives scores in turn, by how often it was asked; draws random numbers meanwhile."""

    def __init__(self, scores: tuple[float, ...] = SCORES) -> None:
        self.scores = scores
        self.seen: list[Mapping[str, Array]] = []

    def __call__(self, tensors: Mapping[str, Array], /) -> dict[str, float]:
        torch.rand(3)
        self.seen.append(tensors)
        score = self.scores[len(self.seen) - 1]
        return {"ap": score, "ap50": 2 * score}


def size_of(tensors: Mapping[str, Array]) -> dict[str, float]:
    """A judge whose answer depends on the values alone."""
    return {"ap": float(sum(np.abs(values).sum() for values in tensors.values()))}


def trainer_of(network: nn.Module, average: float | None = None) -> Trainer:
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)
    kept = Average(network, average) if average else None
    return Trainer(network, optimizer, steps(0.05, 0, 1), ALONE, average=kept)


def trained(patience: int | None = None, **settings: Any) -> tuple[Trainer, Validation, Scripted]:
    network, judge = network_of(0.5), Scripted()
    trainer = trainer_of(network)
    validation = Validation(Held(network), judge, every=2, patience=patience)
    run(trainer, 11, validation=validation, log_every=3, **settings)
    return trainer, validation, judge


def test_the_best_values_are_kept_and_the_figures_are_in_the_curves() -> None:
    trainer, validation, judge = trained()
    assert (validation.best, validation.best_iteration) == (0.4, 11)  # the end is looked at too
    assert validation.best_tensors.keys() == judge.seen[5].keys()
    curves = trainer.curves
    assert curves["iteration"] == [2, 3, 4, 6, 8, 9, 10, 11]
    expected = [0.1, math.nan, 0.3, 0.2, 0.3, math.nan, 0.25, 0.4]
    np.testing.assert_equal(curves["ap"], expected)
    np.testing.assert_equal(curves["ap50"], [2 * value for value in expected])
    assert len({len(values) for values in curves.values()}) == 1


def test_a_curve_that_comes_later_has_nothing_before() -> None:
    trainer = trainer_of(network_of())
    validation = Validation(Held(trainer.network), Scripted(), every=4)
    run(trainer, 4, validation=validation, log_every=2)
    np.testing.assert_equal(trainer.curves["ap"], [math.nan, 0.1])


def test_of_equal_ones_the_first_stays() -> None:
    trainer, validation, judge = trained(patience=3)
    # .1, .3, .2, .3, .25: the third look without a better one is after iteration 10
    assert (trainer.iteration, len(judge.seen)) == (10, 5)
    assert (validation.best, validation.best_iteration, validation.ended) == (0.3, 4, True)
    held = trainer_of(network_of(0.5))
    run(held, 4)
    for name, values in Held(held.network).tensors().items():
        np.testing.assert_array_equal(validation.best_tensors[name], values)


def test_training_does_not_notice() -> None:
    judged, plain, judge = trainer_of(network_of(0.5)), trainer_of(network_of(0.5)), Scripted()
    run(plain, 11)
    state = torch.get_rng_state()
    run(judged, 11, validation=Validation(Held(judged.network), judge, every=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(state_of(judged.network), state_of(plain.network))
    assert judged.network.training
    assert len({id(tensors) for tensors in judge.seen}) == 6


def test_the_average_is_judged() -> None:
    network, judge = network_of(), Scripted()
    trainer = trainer_of(network, average=0.9)
    run(trainer, 4, validation=Validation(Held(network), judge, every=4))
    own = {name: values.copy() for name, values in Held(network).tensors().items()}
    with trainer.outcome():
        for name, values in Held(network).tensors().items():
            np.testing.assert_array_equal(judge.seen[0][name], values)
            assert not np.array_equal(judge.seen[0][name], own[name])


@pytest.mark.parametrize("stop", [3, 4, 6, 9])
@pytest.mark.parametrize("patience", [None, 2])
def test_resumed_equals_uninterrupted(stop: int, patience: int | None, tmp_path: Path) -> None:
    def fresh() -> tuple[Trainer, Validation]:
        network = network_of(0.5)
        trainer = trainer_of(network, average=0.5)
        return trainer, Validation(Held(network), size_of, every=2, patience=patience)

    whole, looked = fresh()
    run(whole, 12, validation=looked, log_every=5)
    stopped, validation = fresh()
    settings: Any = {"folder": tmp_path, "checkpoint_every": stop, "log_every": 5}
    settings["validation"] = validation
    for done in train(stopped, batches(0), loss_of(stopped.network), 12, **settings):
        if done == stop + 1:
            break
    resumed, again = fresh()
    resumed.resume(tmp_path, again)
    run(resumed, 12, validation=again, log_every=5)
    assert equal(state_of(whole.network), state_of(resumed.network))
    assert repr(whole.curves) == repr(resumed.curves)
    assert looked.state() == again.state()
    assert looked.best_tensors.keys() == again.best_tensors.keys()
    for name, values in looked.best_tensors.items():
        assert values.tobytes() == again.best_tensors[name].tobytes()


def test_what_has_ended_is_resumed_as_ended(tmp_path: Path) -> None:
    network = network_of(0.5)
    validation = Validation(Held(network), Scripted((0.3, 0.2, 0.1)), every=2, patience=2)
    settings: Any = {"folder": tmp_path, "checkpoint_every": 3}
    run(trainer_of(network), 12, validation=validation, **settings)
    assert validation.ended
    resumed = trainer_of(network_of(0.5))
    again = Validation(Held(resumed.network), Scripted(), every=2, patience=2)
    resumed.resume(tmp_path, again)
    assert (resumed.iteration, again.ended) == (6, True)
    assert list(train(resumed, batches(6), loss_of(resumed.network), 12, validation=again)) == []
