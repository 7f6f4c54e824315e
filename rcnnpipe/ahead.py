"""Doing the next few things while the last one is used: decoding overlaps computing."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    depth: int | None = None,
) -> Iterator[Result]:
    """``map`` by threads, in order, at most ``depth`` results ahead of the consumer.

    Args:
        function: what to do; should leave the interpreter lock for most of its time.
        items: for each of these.
        workers: threads; 0 does each when it is asked for.
        depth: results that may wait; default twice the threads. It bounds the memory.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > (depth or 2 * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Not waited for: where an error left this behind, the thread that clears it away may be
        # one of the pool's own, which cannot wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)
