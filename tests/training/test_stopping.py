"""A bad batch that is kept for inspection, and memory that does not suffice."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.training.loop import Batch, Part, train
from rcnnpipe.training.stopping import keep_batch, memory_told
from tests.training.test_loop import batches, loss_of, network_of, trainer_of

CPU = torch.device("cpu")


def test_the_network_input_and_the_ids_are_kept(tmp_path: Path) -> None:
    pieces = [(torch.full((2, 3), math.nan), None), (torch.ones(1, 3), None)]
    path = tmp_path / "model.h5.bad-batch.npz"
    assert keep_batch(path, lambda: Batch(["a", "ü"], iter(pieces))) == path
    with np.load(path, allow_pickle=False) as held:
        assert set(held.files) == {"image-ids", "input-0", "input-1"}
        assert held["image-ids"].tolist() == ["a", "ü"]
        assert np.isnan(held["input-0"]).all()
        assert held["input-1"].tolist() == [[1, 1, 1]]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("full"), MemoryError(), KeyError("a"), StopIteration()])
def test_what_cannot_be_kept_is_no_matter(error: Exception, tmp_path: Path) -> None:
    def fail() -> Batch[tuple[Tensor, Tensor]]:
        raise error

    assert keep_batch(tmp_path / "bad.npz", fail) is None
    assert keep_batch(tmp_path / "absent" / "bad.npz", lambda: Batch(["a"], [])) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [Path("out.h5.bad-batch.npz"), None])
def test_the_sentence_names_the_file_if_there_is_one(kept: Path | None) -> None:
    trainer, asked = trainer_of(network_of()), []

    def poisoned() -> Iterator[Batch[tuple[Tensor, Tensor]]]:
        for number, batch in enumerate(batches(0)):
            pieces = [(x * math.nan if number == 2 else x, labels) for x, labels in batch.pieces]
            yield Batch(batch.image_ids, pieces)

    def keep(iteration: int) -> Path | None:
        asked.append(iteration)
        return kept

    told = f"; its network input is in {kept}$" if kept else "$"
    with pytest.raises(DataError, match=f"loss of iteration 3 is nan; .*images: image2{told}"):
        list(train(trainer, poisoned(), loss_of(trainer.network), 9, keep_bad=keep))
    assert asked == [2]


ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["batch", "piece", "loss"])
def test_too_little_memory_names_what_to_lower(error: Exception, where: str) -> None:
    trainer = trainer_of(network_of())

    def failing() -> Iterator[tuple[Tensor, Tensor]]:
        raise error
        yield

    def source() -> Iterator[Batch[tuple[Tensor, Tensor]]]:
        if where == "batch":
            raise error
        yield Batch(["a"], failing()) if where == "piece" else next(batches(0))

    def loss_function(piece: tuple[Tensor, Tensor], /) -> Part:
        raise error

    sentence = "the memory of cpu does not suffice for a batch of this size; lower --images$"
    with pytest.raises(SettingError, match=sentence):
        list(train(trainer, source(), loss_function, 1, remedy="lower --images"))


def test_other_errors_stay_what_they_are(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_told(CPU, "lower --images"):
        raise RuntimeError("shapes do not fit")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
