import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnnpipe.datasets import Record
from rcnnpipe.errors import DataError
from rcnnpipe.proposals import windows
from rcnnpipe.proposals.ranking import Proposed
from rcnnpipe.proposals.spread import propose_all
from tests.proposals.test_precomputed import record

SIZES = [(40 + 5 * number, 60) for number in range(7)]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for number, size in enumerate(SIZES):
        one = record(str(number), size)
        object.__setattr__(one, "path", tmp_path / f"{number}.png")
        Image.fromarray(np.full((*size, 3), number, np.uint8)).save(one.path)
        made.append(one)
    return made


# Module-level, so that other processes find them. An image's value is its number.
def kill_at_three(image: np.ndarray, generator: np.random.Generator) -> Proposed:
    if image[0, 0, 0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return windows.propose(image, generator)


def fail_at_three(
    image: np.ndarray, generator: np.random.Generator, *, error: Exception
) -> Proposed:
    if image[0, 0, 0] == 3:
        raise error
    return windows.propose(image, generator)


def test_processes_change_nothing(records: list[Record]) -> None:
    alone = list(propose_all(windows.propose, records, seed=5))
    spread = list(propose_all(windows.propose, records, seed=5, workers=2))
    assert len(alone) == len(spread) == len(records)
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    # An image's boxes do not depend on what came before.
    last = list(propose_all(windows.propose, records[-1:], seed=5))
    np.testing.assert_array_equal(last[0].boxes, alone[-1].boxes)
    other_seed = next(propose_all(windows.propose, records, seed=6))
    assert (other_seed.boxes != alone[0].boxes).any()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_image_is_named_after_what_is_good(records: list[Record], workers: int) -> None:
    records[3].path.write_bytes(b"no image")
    good: list[Proposed] = []
    with pytest.raises(DataError, match=r"3\.png is not an image"):
        good.extend(propose_all(windows.propose, records, seed=0, workers=workers))
    assert len(good) == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), r"3\.png \(60 x 55\) needs more memory than there is; .*--resize-width"),
        (ValueError("odd\nthings"), r"no proposals for .*3\.png: ValueError: odd things"),
    ],
)
def test_a_failing_method_names_the_image(
    records: list[Record], error: Exception, words: str
) -> None:
    proposer = partial(fail_at_three, error=error)
    with pytest.raises(DataError, match=words):
        list(propose_all(proposer, records, seed=0))


def test_a_killed_worker_is_told_and_what_came_before_is_kept(records: list[Record]) -> None:
    good: list[Proposed] = []
    with pytest.raises(DataError, match=r"worker process was killed.*fewer --workers"):
        good.extend(propose_all(kill_at_three, records, seed=0, workers=2))
    assert len(good) <= 3


def test_an_image_of_another_size_than_annotated_is_told(records: list[Record]) -> None:
    object.__setattr__(records[1], "size", (10, 20))
    with pytest.raises(DataError, match=r"1\.png is 60 x 45, but its annotation says 20 x 10"):
        list(propose_all(windows.propose, records, seed=0))


def test_no_images_start_nothing() -> None:
    assert list(propose_all(windows.propose, [], seed=0, workers=4, prepare=lambda: 1 / 0)) == []
