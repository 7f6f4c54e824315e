"""Generators, ragged columns, work done ahead, and progress."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rcnnpipe.ahead import ahead
from rcnnpipe.extraction.regions import mean_norm
from rcnnpipe.progress import track
from rcnnpipe.ragged import image_of_rows, offsets_of, rows_of
from rcnnpipe.randomness import generator


def test_generators_depend_on_every_key_and_nothing_else() -> None:
    draws = {
        keys: generator(*keys).integers(2**62)  # type: ignore[arg-type]
        for keys in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", "1", 2), (0, "a", 12)]
    }
    assert len(set(draws.values())) == len(draws)
    np.random.default_rng().random(3)  # other draws in between change nothing
    assert generator(0, "a", 1).integers(2**62) == draws[(0, "a", 1)]


def test_offsets_slices_and_images_of_rows() -> None:
    offsets = offsets_of([2, 0, 3])
    assert offsets.tolist() == [0, 2, 2, 5]
    assert [rows_of(offsets, image) for image in range(3)] == [
        slice(0, 2),
        slice(2, 2),
        slice(2, 5),
    ]
    assert image_of_rows(offsets).tolist() == [0, 0, 2, 2, 2]
    assert offsets_of([]).tolist() == [0]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_keeps_the_order_and_the_bound(workers: int) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number * number

    results = ahead(work, range(30), workers, depth=4)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(begun) <= 6
    assert list(results) == [number * number for number in range(1, 30)]


def test_ahead_that_its_own_thread_clears_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an error left behind is collected by whichever thread comes first."""
    problems: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    held: list[Any] = []
    left, cleared = threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number == 1:
            left.wait(10)
            held.clear()
            cleared.set()
        return number

    held.append(ahead(work, range(9), 1, depth=1))
    assert next(held[0]) == 0
    left.set()
    assert cleared.wait(10)
    assert not held
    assert problems == []


def test_ahead_hands_errors_on_in_their_place_and_stops() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    seen: list[int] = []
    with pytest.raises(ValueError, match="three"):
        seen.extend(ahead(work, iter(range(100)), 2))
    assert seen == [0, 1, 2]
    assert threading.active_count() < 10


def test_progress_says_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("rcnnpipe.progress.time.monotonic", lambda: now[0])

    def work() -> Iterator[int]:
        for number in range(6):
            now[0] += 20
            yield number

    with caplog.at_level(logging.INFO):
        assert list(track(work(), total=8, label="propose", done=2)) == list(range(6))
    assert [record.getMessage() for record in caplog.records] == [
        "propose: 4 of 8 images, 0.05 images/s, 80 s left",
        "propose: 6 of 8 images, 0.05 images/s, 40 s left",
    ]


def test_mean_norm_draws_images_and_regions() -> None:
    norms = np.concatenate([np.full(1000, value, np.float32) for value in (1, 2, 6)])
    offsets = offsets_of([1000, 1000, 1000])
    assert mean_norm(norms, offsets) == 3
    # A draw of one image sees that image alone; of no regions, nothing.
    assert mean_norm(norms, offsets, images=1) in (1, 2, 6)
    assert mean_norm(np.empty(0), offsets_of([0, 0])) == 0
