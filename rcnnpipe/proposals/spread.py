"""Proposing for many images: spread over processes, given back in order.

Every image has a generator of its own, so neither the number of processes nor what was done before
changes a box.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import DataError, RcnnpipeError, one_line
from rcnnpipe.images import read_image
from rcnnpipe.proposals.ranking import Proposed
from rcnnpipe.randomness import generator

Proposer = Callable[[npt.NDArray[np.uint8], np.random.Generator], Proposed]
_AHEAD = 4  # images handed out for each process, so that none waits for the slowest


def propose_record(proposer: Proposer, record: Record, seed: int) -> Proposed:
    """The proposals of one annotated image.

    Raises:
        DataError: the image cannot be read, has not the size of its annotation, is too large for
            the memory, or the method fails on it.
    """
    image = read_image(record.path)
    if image.shape[:2] != tuple(record.size):
        height, width = record.size
        raise DataError(
            f"{record.path} is {image.shape[1]} x {image.shape[0]}, but its annotation says "
            f"{width} x {height}; correct one of them"
        )
    try:
        return proposer(image, generator(seed, "propose", record.image_id))
    except RcnnpipeError:
        raise
    except MemoryError:
        raise DataError(
            f"{record.path} ({image.shape[1]} x {image.shape[0]}) needs more memory than there is; "
            "search it smaller with --resize-width, or take fewer --workers"
        ) from None
    except Exception as error:  # what other packages raise is theirs
        raise DataError(
            f"no proposals for {record.path}: {type(error).__name__}: "
            f"{one_line(error) or 'no reason given'}"
        ) from error


def _start_process(prepare: Callable[[], object] | None) -> None:
    """Compile or load what is needed, and end when the process that started this one is killed.

    Otherwise workers would wait for it for ever. An interrupt from the terminal reaches all
    processes of a command; that one alone answers it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def propose_all(
    proposer: Proposer,
    records: Sequence[Record],
    seed: int,
    workers: int = 1,
    prepare: Callable[[], object] | None = None,
) -> Iterator[Proposed]:
    """The proposals of each image, in order.

    Args:
        proposer: a method with its settings; with several workers it must be picklable, such as a
            `functools.partial` of a function.
        records: the images.
        seed: of the ranking.
        workers: processes; 1 works in this one.
        prepare: called once here and then once in every process, to compile or load.

    Raises:
        DataError: an image cannot be used, named; or a process was killed. What was yielded before
            is good, and is all images before the one named.
    """
    if prepare is not None and records:
        prepare()
    workers = min(workers, len(records))
    if workers <= 1:
        yield from (propose_record(proposer, record, seed) for record in records)
        return
    # Not fork: a forked child of a process with threads may hang.
    kinds = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_process, initargs=(prepare,)
    )
    waiting: deque[tuple[Record, Future[Proposed]]] = deque()
    todo = iter(records)
    try:
        while True:
            while len(waiting) < _AHEAD * workers and (record := next(todo, None)) is not None:
                waiting.append((record, pool.submit(propose_record, proposer, record, seed)))
            if not waiting:
                return
            _, future = waiting[0]
            yield future.result()
            waiting.popleft()
    except BrokenProcessPool:
        raise DataError(
            f"a worker process was killed, probably for want of memory, at {waiting[0][0].path} or "
            f"one of the {_AHEAD * workers} images after it; run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
