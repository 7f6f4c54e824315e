"""Where the time of detect goes: ``python -m tests.benchmarks.bench_parts MODEL DATA [WORD ...]``.

Runs ``rcnnpipe detect DATA --model MODEL WORD ...`` with a clock around each of its parts and
prints milliseconds of an image; a part within another is the outer one's. Without threads, so that
decoding is seen too. WORDs are for detect, e.g. ``--split val --proposals p.h5 --max-per-set 0``.
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from click.testing import CliRunner

import rcnnpipe.detection
import rcnnpipe.extraction.detectors
import rcnnpipe.extraction.maps
import rcnnpipe.extraction.regions
import rcnnpipe.extraction.windows
import rcnnpipe.suppression
from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.cli import main as command_line
from rcnnpipe.extraction.maps import MapExtractor
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.detector import Detector

# Name of a part -> where its functions are called from. The first call of a part decides.
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "decoding": ((rcnnpipe.extraction.regions, "read_pixels"),),
    "resizing": ((rcnnpipe.extraction.detectors, "resize"),),
    "warping": ((rcnnpipe.extraction.windows, "warp"),),
    "convolutions of the image": ((Detector, "maps"), (MapExtractor, "_map")),
    "region proposal network": ((Detector, "find_regions"),),
    "pooling": ((Detector, "pool"), (rcnnpipe.extraction.maps, "pool_windows")),
    "layers of regions": (
        (Detector, "behind"),
        (rcnnpipe.extraction.maps, "layers_behind"),
        (Network, "forward"),
    ),
    "scores and boxes": ((rcnnpipe.detection, "detect_regions"),),
    "suppression": ((rcnnpipe.suppression, "select"),),
}


class Clock:
    """Seconds of each part, of the outermost alone."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside = False

    @contextmanager
    def around(self, part: str) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._inside, started = True, now()
        try:
            yield
        finally:
            self.spent[part] += now() - started
            self._inside = False

    def watch(self, part: str, owner: Any, name: str) -> Any:
        """A patch that times one function."""
        original = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.around(part):
                return original(*arguments, **named)

        return patch.object(owner, name, timed)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def detect(words: list[str], out: Path) -> None:
    result = CliRunner().invoke(command_line, ["detect", *words, "--out", str(out)])
    if result.exit_code:
        raise SystemExit(result.output)


def main(words: list[str]) -> None:
    if len(words) < 2:
        raise SystemExit(__doc__)
    model, *rest = words
    words = [*rest, "--model", model, "--workers", "0"]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        detect(words, Path(folder) / "warm.h5")
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(clock.watch(part, owner, name))
        started = now()
        detect(words, Path(folder) / "found.h5")
        total = now() - started
        images = len(read_detections(Path(folder) / "found.h5").image_ids)
    print(f"{model}, {images} images, {torch.get_num_threads()} threads: ms of an image")
    rows = [*clock.spent.items(), ("everything else", total - sum(clock.spent.values()))]
    for part, seconds in [*rows, ("together", total)]:
        print(f"  {part:<28}{1000 * seconds / images:10.1f}{seconds / total:8.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
