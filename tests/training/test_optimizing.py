"""AdamW, clipping and the averaged weights against slow references; resuming with them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rcnnpipe.systems.rcnn import ADAMW, Solver
from rcnnpipe.training.average import Average
from rcnnpipe.training.finetuning import new_trainer
from rcnnpipe.training.loop import PRECISIONS, Trainer, train
from tests.reference.optimizing import AdamW, Values, averaged, clipped
from tests.training.test_loop import ALONE, batches, data_of, equal, loss_of, network_of, run
from tests.training.test_loop import state_of as state_of_network

ADAM = replace(Solver(), optimizer="adamw", iterations=12, step=0, **ADAMW)


def listed(tensors: Iterator[nn.Parameter] | tuple[Tensor, ...]) -> Values:
    return [tensor.detach().flatten().double().tolist() for tensor in tensors]


def gradients_of(network: nn.Module, iteration: int) -> Values:
    loss = loss_of(network)(data_of(iteration)).loss
    return listed(torch.autograd.grad(loss, list(network.parameters())))


def assert_close(network: nn.Module, expected: Values) -> None:
    for found, value in zip(listed(network.parameters()), expected, strict=True):
        assert found == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_adamw_decays_weights_apart_from_their_gradients() -> None:
    network, trained = network_of(), network_of()
    solver = replace(ADAM, learning_rate=0.01, warm_up=4)
    trainer = new_trainer(trained, solver, ALONE)
    reference = AdamW([0.05, 0, 0.05, 0], [1, 2, 1, 2])  # biases: no decay, twice the rate
    values = listed(network.parameters())
    for iteration in range(6):
        rate = 0.01 * (1 / 3 + 2 / 3 * min(1, iteration / 4))
        values = reference.step(values, gradients_of(network, iteration), rate)
        with torch.no_grad():
            for parameter, own in zip(network.parameters(), values, strict=True):
                parameter.copy_(torch.tensor(own).view_as(parameter))
    run(trainer, 6)
    assert_close(trained, values)


@pytest.mark.parametrize(("limit", "matters"), [(0.05, True), (1e6, False)])
def test_gradients_are_shortened_together(limit: float, matters: bool) -> None:
    network = network_of()
    before = listed(network.parameters())
    gradients = clipped(gradients_of(network, 0), limit)
    solver = Solver(learning_rate=0.5, momentum=0, weight_decay=0, bias_multiplier=1, clip=limit)
    run(new_trainer(network, solver, ALONE), 1)
    pairs = zip(before, gradients, strict=True)
    assert_close(network, [[v - 0.5 * g for v, g in zip(*p, strict=True)] for p in pairs])
    free = network_of()
    run(new_trainer(free, replace(solver, clip=None), ALONE), 1)
    assert equal(state_of_network(free), state_of_network(network)) != matters


def test_scaled_gradients_are_clipped_as_they_would_be_without_a_scale() -> None:
    networks = {}
    for precision in ("fp32", "fp16"):
        networks[precision] = network_of()
        solver = Solver(learning_rate=0.5, momentum=0, weight_decay=0, clip=0.05)
        run(new_trainer(networks[precision], solver, ALONE, precision), 3)
    start = network_of()
    for first, own, other in zip(
        *(network.parameters() for network in (start, networks["fp32"], networks["fp16"])),
        strict=True,
    ):
        moved = (own - first).norm()
        assert moved > 0
        assert (own - other).norm() < 0.05 * moved


def test_the_average_is_what_training_comes_to_and_training_does_not_see_it() -> None:
    plain, network = network_of(0.5), network_of(0.5)
    solver = Solver(learning_rate=0.1)
    run(new_trainer(plain, solver, ALONE), 40)
    trainer = new_trainer(network, replace(solver, average=0.6), ALONE)
    expected = listed(network.parameters())
    for done in train(trainer, batches(0), loss_of(network), 40):
        expected = averaged(expected, listed(network.parameters()), 0.6, done - 1)
    assert equal(state_of_network(plain), state_of_network(network))
    with trainer.outcome():
        assert_close(network, expected)
        assert not equal(state_of_network(plain), state_of_network(network))
    assert equal(state_of_network(plain), state_of_network(network))


def test_buffers_are_copied_and_frozen_weights_stay_to_the_bit() -> None:
    linear, norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
    network = nn.Sequential(linear, norm)
    average = Average(network, 0.9)
    first = linear.weight.detach().clone()
    with torch.no_grad():
        norm.weight.fill_(3.0)
        for value in norm.buffers():
            value.fill_(7)
    average.add(network, 1000)
    assert torch.equal(average.values["0.weight"], first)
    torch.testing.assert_close(average.values["1.weight"], torch.full((4,), 1.2))
    assert average.values["1.num_batches_tracked"] == 7
    assert average.values["1.running_var"].tolist() == [7.0] * 4


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_resumed_equals_uninterrupted(precision: str, tmp_path: Path) -> None:
    solver = replace(ADAM, schedule="cosine", warm_up=3, clip=0.1, average=0.9)

    def fresh() -> Trainer:
        return new_trainer(network_of(0.5), solver, ALONE, precision)

    def outcome(trainer: Trainer) -> list[Tensor]:
        with trainer.outcome():
            return state_of_network(trainer.network)

    whole, stopped, resumed = fresh(), fresh(), fresh()
    run(whole, 12, log_every=5)
    settings: Any = {"folder": tmp_path, "checkpoint_every": 5, "log_every": 5}
    for done in train(stopped, batches(0), loss_of(stopped.network), 12, **settings):
        if done == 7:
            break
    resumed.resume(tmp_path)
    assert resumed.iteration == 5
    run(resumed, 12, log_every=5)
    assert equal(state_of_network(whole.network), state_of_network(resumed.network))
    assert equal(outcome(whole), outcome(resumed))
    assert repr(whole.curves) == repr(resumed.curves)
