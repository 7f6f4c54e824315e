"""The loop against arithmetic by hand; resuming, dropout, curves, and what stops it."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.randomness import generator
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.loop import PRECISIONS, Batch, Part, Trainer, train
from rcnnpipe.training.schedules import steps

ALONE = Ranks(0, 1, torch.device("cpu"))


def data_of(iteration: int) -> tuple[Tensor, Tensor]:
    random = generator(0, "data", iteration)
    inputs = torch.from_numpy(random.random((12, 3), "float32"))
    return inputs, (inputs.sum(1) > 1.5).long()


def batches(start: int, parts: int = 1) -> Iterator[Batch[tuple[Tensor, Tensor]]]:
    while True:
        inputs, labels = data_of(start)
        pieces = zip(inputs.chunk(parts), labels.chunk(parts), strict=True)
        yield Batch([f"image{start}"], list(pieces))
        start += 1


def network_of(dropout: float = 0.0) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5, generator=random)
    return network


def trainer_of(network: nn.Module, **settings: Any) -> Trainer:
    groups = [
        {"params": list(network.parameters())[:2], "weight_decay": 0.01},
        {"params": list(network.parameters())[2:], "lr_multiplier": 10.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    return Trainer(network, optimizer, steps(0.01, 4, 0.1), ALONE, **settings)


def loss_of(network: nn.Module) -> Any:
    def loss_function(piece: tuple[Tensor, Tensor], /) -> Part:
        inputs, labels = piece
        logits = network(inputs)
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / 12
        right = logits.argmax(1) == labels
        shares = {
            "accuracy": torch.stack((right.sum(), torch.tensor(len(labels)))).float(),
            "never": torch.zeros(2),
        }
        return Part(loss, shares)

    return loss_function


def run(trainer: Trainer, iterations: int, parts: int = 1, **settings: Any) -> None:
    steps = batches(trainer.iteration, parts)
    for _ in train(trainer, steps, loss_of(trainer.network), iterations, **settings):
        pass


def state_of(network: nn.Module) -> list[Tensor]:
    return [value.clone() for value in network.state_dict().values()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_steps_are_momentum_descent_with_multipliers_decay_and_schedule() -> None:
    network = network_of()
    expected = [value.detach().clone().requires_grad_() for value in network.parameters()]
    velocity = [torch.zeros_like(value) for value in expected]
    trainer = trainer_of(network)
    run(trainer, 6)
    for iteration in range(6):
        inputs, labels = data_of(iteration)
        hidden = (inputs @ expected[0].T + expected[1]).clamp(min=0)
        logits = hidden @ expected[2].T + expected[3]
        loss = -logits.log_softmax(1)[torch.arange(12), labels].mean()
        gradients = torch.autograd.grad(loss, expected)
        rate = 0.01 if iteration < 4 else 0.001
        with torch.no_grad():
            for number, value in enumerate(expected):
                first = number < 2
                gradient = gradients[number] + (0.01 * value if first else 0)
                velocity[number] = 0.9 * velocity[number] + gradient
                value -= rate * (1 if first else 10) * velocity[number]
    for found, value in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_a_batch_in_parts_is_the_same_batch() -> None:
    whole, parts = network_of(), network_of()
    trainers = trainer_of(whole), trainer_of(parts)
    run(trainers[0], 5, log_every=5)
    run(trainers[1], 5, parts=3, log_every=5)
    for first, second in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(first, second)
    assert trainers[0].curves["accuracy"] == trainers[1].curves["accuracy"]
    assert trainers[0].curves["loss"] == pytest.approx(trainers[1].curves["loss"], rel=1e-6)


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("stop", [3, 4, 7])
def test_resumed_equals_uninterrupted(precision: str, stop: int, tmp_path: Path) -> None:
    whole = trainer_of(network_of(0.5), precision=precision)
    run(whole, 10, log_every=4)
    stopped = trainer_of(network_of(0.5), precision=precision)
    steps = batches(0)
    settings: Any = {"folder": tmp_path, "checkpoint_every": stop, "log_every": 4}
    for done in train(stopped, steps, loss_of(stopped.network), 10, **settings):
        if done == stop + 2:  # two iterations behind the checkpoint are lost
            break
    resumed = trainer_of(network_of(0.5), precision=precision)
    resumed.resume(tmp_path)
    assert resumed.iteration == stop
    run(resumed, 10, log_every=4)
    assert equal(state_of(whole.network), state_of(resumed.network))
    assert repr(whole.curves) == repr(resumed.curves)  # repr: NaN equals NaN
    assert all(value.dtype == torch.float32 for value in whole.network.parameters())


def test_mixed_precision_learns_as_float32_does() -> None:
    losses = {}
    for precision in PRECISIONS:
        trainer = trainer_of(network_of(), precision=precision)
        run(trainer, 20, log_every=20)
        losses[precision] = trainer.curves["loss"][0]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert len(set(losses.values())) == 3  # each is its own arithmetic


def test_dropout_depends_on_seed_and_iteration_and_leaves_the_process_alone() -> None:
    trainer = trainer_of(network_of(0.5))
    before = torch.get_rng_state()
    run(trainer, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)  # whatever the process draws besides is no matter
    again = trainer_of(network_of(0.5))
    run(again, 3)
    assert equal(state_of(trainer.network), state_of(again.network))
    other = trainer_of(network_of(0.5), seed=1)
    run(other, 3)
    assert not equal(state_of(trainer.network), state_of(other.network))


def test_masks_differ_between_iterations() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    trainer = Trainer(network, optimizer, steps(1e-3, 0, 1), ALONE)
    seen: list[Tensor] = []

    def loss_function(piece: Tensor, /) -> Part:
        dropped = network[0](piece)
        seen.append(dropped.detach())
        return Part(network[1](dropped).sum(), {})

    for _ in range(2):
        trainer.step([torch.ones(1, 64)], loss_function)
    assert not torch.equal(seen[0], seen[1])


def test_curves_are_means_over_their_interval() -> None:
    trainer = trainer_of(network_of())
    losses = []
    for batch in batches(0):
        losses.append(float(trainer.step(batch.pieces, loss_of(trainer.network))))
        if trainer.iteration in (4, 6):
            trainer.log()
        if trainer.iteration == 6:
            break
    curves = trainer.curves
    assert curves["iteration"] == [4, 6]
    assert curves["loss"] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 2])
    assert curves["learning-rate"] == pytest.approx([0.01, 0.001])
    assert all(0 <= value <= 1 for value in curves["accuracy"])
    assert all(math.isnan(value) for value in curves["never"])


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    trainer = trainer_of(network_of())

    def poisoned() -> Iterator[Batch[tuple[Tensor, Tensor]]]:
        for number, batch in enumerate(batches(0)):
            if number != 6:
                yield batch
            else:
                inputs, labels = data_of(number)
                yield Batch(["bad", "bad", "worse"], [(inputs * math.nan, labels)])

    loop = train(
        *(trainer, poisoned(), loss_of(trainer.network), 20),
        folder=tmp_path,
        checkpoint_every=5,
    )
    with pytest.raises(DataError, match=r"the loss of iteration 7 is nan; .* images: bad, worse$"):
        for _ in loop:
            pass
    kept = trainer_of(network_of())
    kept.resume(tmp_path)
    assert kept.iteration == 5
    assert all(bool(torch.isfinite(value).all()) for value in kept.network.parameters())


def test_the_last_batch_is_looked_at_too(tmp_path: Path) -> None:
    trainer = trainer_of(network_of())
    bad = iter([Batch(["bad"], [(torch.full((12, 3), math.inf), torch.zeros(12).long())])])
    with pytest.raises(DataError, match=r"images: bad$"):
        list(train(trainer, bad, loss_of(trainer.network), 1, folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_too_little_memory_names_the_setting_to_change() -> None:
    trainer = trainer_of(network_of())

    def loss_function(piece: tuple[Tensor, Tensor], /) -> Part:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SettingError, match=r"raise --accumulate.* or lower --batch-size"):
        list(train(trainer, batches(0), loss_function, 1))


def test_a_finished_training_is_resumed_as_finished(tmp_path: Path) -> None:
    run(trainer_of(network_of()), 3, folder=tmp_path)
    again = trainer_of(network_of())
    again.resume(tmp_path)
    assert list(train(again, batches(3), loss_of(again.network), 3)) == []
    assert again.curves["iteration"] == [3]


def test_each_interval_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rcnnpipe"):
        run(trainer_of(network_of()), 5, log_every=3)
    texts = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in texts] == ["iteration 3 of 5", "iteration 5 of 5"]
    assert all("loss" in text and "learning rate" in text for text in texts)


def test_the_rate_falls_in_steps() -> None:
    schedule = steps(0.001, 20_000, 0.1)
    assert [schedule(i) for i in (0, 19_999, 20_000, 40_000)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-5]
    )
    assert steps(0.5, 0, 0.1)(10**6) == 0.5
    with pytest.raises(SettingError, match="above 0"):
        steps(0.0, 10, 0.1)
