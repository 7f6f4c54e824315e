"""Proposals: seconds, boxes, recall and memory of every method, on the same photographs.

    python -m tests.benchmarks.bench_propose            all methods, about 15 minutes
    python -m tests.benchmarks.bench_propose fast       one of them

Photographs are resized to 500 px. Every method runs in a process of its own, on one core, once
without a limit on the number of boxes; the rows of 2,000 boxes are the best of the same ranking.
Seconds are of processor time (all methods use one thread), so that other work on the machine counts
little. Recall and MABO (mean best overlap, averaged over objects) are of all COCO objects but
crowds, of those of 32 x 32 px and more, and of the other sets' objects.
"""

import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from rcnnpipe.datasets import open_dataset
from rcnnpipe.images import read_image
from rcnnpipe.proposals import adapters, selective_search, windows
from rcnnpipe.randomness import generator
from tests.realdata import DATA

WIDTH = 500
# Photographs of each set.
SETS = {"coco_multi": 34, "coco_person": 14, "playing_cards": 14, "raccoon": 14}
UNLIMITED: dict[str, Any] = {"max_boxes": 1_000_000}
QUALITY = selective_search.STRATEGIES["quality"]
# name -> (method, every how many photographs)
METHODS: dict[str, tuple[Any, int]] = {
    "fast": (partial(selective_search.propose, **UNLIMITED), 1),
    "quality": (partial(selective_search.propose, strategy=QUALITY, **UNLIMITED), 1),
    "opencv-fast": (partial(adapters.opencv, mode="fast", **UNLIMITED), 1),
    "opencv-quality": (partial(adapters.opencv, mode="quality", **UNLIMITED), 1),
    "windows": (partial(windows.propose, **UNLIMITED), 1),
    "selectivesearch": (partial(adapters.selectivesearch_package, **UNLIMITED), 5),
}


def photographs(every: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(set/id, image resized, true boxes (T, 4) resized) of a fixed choice, sets in turn."""
    chosen = []
    for name, number in SETS.items():
        records = [r for r in open_dataset(DATA / name, "val").records if (~r.crowd).any()]
        step = max(1, len(records) // number)
        chosen += [(f"{name}/{r.image_id}", r) for r in records[::step][:number]]
    made = []
    for key, record in chosen[::every]:
        scale = WIDTH / record.size[1]
        size = (WIDTH, round(record.size[0] * scale))
        image = Image.fromarray(read_image(record.path)).resize(size, Image.Resampling.BICUBIC)
        made.append((key, np.array(image), record.boxes[~record.crowd] * scale))
    return made


def best_overlaps(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(T,) best intersection over union of each true box."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, truth)]
    best: np.ndarray = (common / (areas[0][:, None] + areas[1][None] - common)).max(axis=0)
    return best


def measure(name: str) -> dict[str, Any]:
    """Run one method in this process, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    method, every = METHODS[name]
    images = photographs(every)
    if name in ("fast", "quality"):
        selective_search.compile_functions()
    method(images[0][1], generator(0, "warm"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, rows = [], []
    for key, image, truth in images:
        started = time.process_time()
        boxes, _ = method(image, generator(0, "propose", key))
        seconds.append(time.process_time() - started)
        for limit in (2000, 1_000_000):
            kept = boxes[:limit].astype(float)
            areas = (truth[:, 2:] - truth[:, :2]).prod(axis=1)
            objects = list(zip(best_overlaps(kept, truth).tolist(), areas.tolist(), strict=True))
            rows.append((key, limit, len(kept), objects))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "rows": rows, "peak": max(peak, before) / 1024}


def lines(name: str, found: dict[str, Any], only: set[str] | None = None) -> list[str]:
    """Rows of the table: the best 2,000 boxes and all of them, by groups of photographs."""
    table = []
    keys = list(dict.fromkeys(row[0] for row in found["rows"]))
    timed = [s for key, s in zip(keys, found["seconds"], strict=True) if not only or key in only]
    for limit, what in ((2000, "2,000"), (1_000_000, "all")):
        rows = [r for r in found["rows"] if r[1] == limit and (not only or r[0] in only)]
        overlaps_of = {
            "coco": [overlap for r in rows if r[0][:4] == "coco" for overlap, _ in r[3]],
            "large": [o for r in rows if r[0][:4] == "coco" for o, area in r[3] if area >= 32**2],
            "others": [overlap for r in rows if r[0][:4] != "coco" for overlap, _ in r[3]],
        }
        cells = []
        for overlaps in map(np.array, overlaps_of.values()):
            recalls = ((overlaps >= least).mean() for least in (0.5, 0.7))
            cells += [f"{value:.3f}" for value in (*recalls, overlaps.mean())]
        count = np.mean([r[2] for r in rows])
        table.append(
            f"| {name} | {len(rows)} | {np.mean(timed):.3f} | {what} | {count:.0f} | "
            + " | ".join(cells)
            + f" | {found['peak']:.0f} |"
        )
    return table


def main(names: list[str]) -> None:
    print("| method | images | s/image | kept | boxes | COCO r@.5 | r@.7 | MABO ", end="")
    print("| 32 px r@.5 | r@.7 | MABO | others r@.5 | r@.7 | MABO | peak MiB |")
    print("|" + "---|" * 15)
    results: dict[str, Any] = {}
    for name in names:
        command = [sys.executable, "-m", "tests.benchmarks.bench_propose", "--measure", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout)
        print("\n".join(lines(name, results[name])), flush=True)
    if {"fast", "selectivesearch"} <= set(names):
        subset = {row[0] for row in results["selectivesearch"]["rows"]}
        print("\n".join(lines("fast, the images of selectivesearch", results["fast"], subset)))
    packages = ("numpy", "numba", "opencv-contrib-python-headless", "selectivesearch")
    print("\n" + ", ".join(f"{package} {version(package)}" for package in packages))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(sys.argv[1:] or list(METHODS))
