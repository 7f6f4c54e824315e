"""Progress of long work: a bar on a terminal, a line now and then elsewhere, always on stderr."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 30.0


def track(
    items: Iterable[Item],
    total: int,
    label: str,
    unit: str = "image",
    done: int = 0,
) -> Iterator[Item]:
    """Yield the items and show how far the work is, its rate and the time left.

    Args:
        items: what is left to do, ``total - done`` of them.
        total: how many there are in all.
        label: what is being done, for example "propose".
        unit: what one item is.
        done: how many an earlier run had finished.
    """
    if sys.stderr.isatty() and _log.isEnabledFor(logging.INFO):
        yield from tqdm(items, desc=label, total=total, unit=unit, initial=done, leave=False)
        return
    started = shown = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= _SECONDS_BETWEEN_LINES and done + count < total:
            shown = now
            rate = count / (now - started)
            left = (total - done - count) / rate
            _log.info(
                "%s: %d of %d %ss, %.3g %ss/s, %d s left",
                *(label, done + count, total, unit, rate, unit, round(left)),
            )
