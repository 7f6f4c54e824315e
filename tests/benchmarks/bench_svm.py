"""All classes' SVMs against the time to read the features once, and against LinearSVC.

Run: ``python -m tests.benchmarks.bench_svm [--images 100] [--rows 1000] [--width 4096]``

Features are drawn, since a network would take hours for as many: rectified random projections of a
latent vector per region, 70 % zeros, mutual cosine about 0.5 as in an fc7 layer; regions that
overlap an object are mixtures with its latent vector.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.features import Features, open_features, region_columns
from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.linear.cache import feature_scale, image_rows, positive_rows
from rcnnpipe.linear.mining import Detector, Solver, train_detectors
from rcnnpipe.linear.svm import ROUGH, Costs, Examples, Solution, solve_dual, solve_liblinear
from rcnnpipe.options import cores

Array = np.ndarray[Any, Any]
Doubles = npt.NDArray[np.float64]


def draw_images(
    images: int, rows: int, width: int, classes: int, objects: int, seed: int = 0
) -> Iterator[tuple[Array, Array, Array]]:
    """Features (rows, width) float16, overlaps (rows, classes), labels of the first rows."""
    random = np.random.default_rng(seed)
    latent = 96
    projection = random.standard_normal((latent, width), np.float32) / np.float32(latent**0.5)
    thresholds = (0.5 * random.standard_normal(width) - 0.6).astype(np.float32)
    prototypes = 1.5 * random.standard_normal((classes, latent), np.float32)
    for _ in range(images):
        labels = random.integers(0, classes, objects)
        scene = 0.7 * random.standard_normal(latent, np.float32)
        codes = scene + 0.8 * random.standard_normal((rows, latent), np.float32)
        overlaps = np.zeros((rows, classes), np.float32)
        for number, label in enumerate(labels):
            instance = prototypes[label] + 0.9 * random.standard_normal(latent, np.float32)
            codes[number], overlaps[number, label] = instance, 1.0
            near = random.choice(np.arange(objects, rows), rows // 10, replace=False)
            share = random.beta(1.2, 2.5, len(near)).astype(np.float32)
            codes[near] += share[:, None] * (instance - codes[near])
            overlaps[near, label] = np.maximum(overlaps[near, label], share)
        values = codes @ projection + thresholds
        values += np.float32(0.35) * random.standard_normal((rows, width), np.float32)
        yield np.maximum(values, 0).astype(np.float16), overlaps, labels + 1


def write_features(path: Path, images: int, rows: int, width: int, classes: int) -> None:
    names = ("background", *(f"class{k + 1}" for k in range(classes)))
    header = make_header(
        "features", stage="drawn", version=1, settings={}, inputs={}, classes=names
    )
    columns = {**region_columns(classes), "layers/fc7": (np.float16, (width,))}
    ids = [f"{i:05d}" for i in range(images)]
    norms: list[float] = []
    sizes = np.full((images, 2), 500)
    with RowWriter(path, header, columns, ids, sizes, compress_workers=2) as writer:
        for values, overlaps, labels in draw_images(images, rows, width, classes, objects=3):
            truth = np.arange(rows) < len(labels)
            norms.append(float(np.linalg.norm(values[::7].astype(np.float32), axis=1).mean()))
            writer.append(
                {
                    "boxes": np.tile(np.array([0, 0, 9, 9], np.float32), (rows, 1)),
                    "is_truth": truth,
                    "difficult": np.zeros(rows, bool),
                    "labels": np.where(truth, np.resize(labels, rows), overlaps.argmax(1) + 1),
                    "overlap": overlaps.max(1),
                    "overlaps": overlaps,
                    "truth": np.where(truth, np.arange(rows), -1),
                    "layers/fc7": values,
                }
            )
        writer.finish(attributes={"mean_norm/fc7": float(np.mean(norms))})


class Timed(NamedTuple):
    seconds: float
    cpu: float  # of all threads; the fairer figure where other processes run as well
    result: Any


def timed(work: Callable[[], Any]) -> Timed:
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Timed(time.perf_counter() - start, time.process_time() - cpu, result)


def total(runs: Sequence[Timed]) -> Timed:
    return Timed(sum(one.seconds for one in runs), sum(one.cpu for one in runs), None)


def read_once(features: Features) -> None:
    """The floor: every row of the layer, block by block, and nothing done with it."""
    for start in range(0, len(features.labels), 4096):
        features.rows("fc7", slice(start, start + 4096))


def train(features: Features, solve: Solver) -> list[Detector]:
    return train_detectors(
        lambda: image_rows(features, "fc7"),
        positive_rows(features, "fc7"),
        solve,
        scale=feature_scale(features, "fc7"),
        workers=cores(),
    )


def dual(examples: Examples, alphas: Doubles, last: bool) -> Solution:
    return solve_dual(examples, Costs(), alphas=alphas, tolerance=1e-5 if last else ROUGH)


def liblinear(examples: Examples, alphas: Doubles, last: bool) -> Solution:
    return solve_liblinear(examples, Costs())


def last_sets(features: Features) -> list[Examples]:
    """What each class's last fit was made of, copied."""
    found: dict[int, Examples] = {}

    def solve(examples: Examples, alphas: Doubles, last: bool) -> Solution:
        copied = replace(
            examples, rows=examples.rows[examples.places], places=np.arange(len(examples.places))
        )
        found[int(examples.places[0])] = copied  # the place of a class's first positive is its own
        return dual(examples, alphas, last)

    train(features, solve)
    return [found[place] for place in sorted(found)]


def measure(features: Features, repeats: int) -> None:
    train(features, dual)  # compiles
    # In turns, and the best of each, so that what else the machine does meets both alike.
    pairs = [
        (timed(lambda: read_once(features)), timed(lambda: train(features, dual)))
        for _ in range(repeats)
    ]
    read, ours = (min(column) for column in zip(*pairs, strict=True))
    with_liblinear = timed(lambda: train(features, liblinear))
    sets = last_sets(features)
    cold = total([timed(partial(solve_dual, one, Costs())) for one in sets])
    peers = [timed(partial(solve_liblinear, one, Costs())) for one in sets]
    peer = total(peers)
    each = Timed(len(sets) * read.seconds + peer.seconds, len(sets) * read.cpu + peer.cpu, None)
    rows = sum(len(one.places) for one in sets)
    print(
        f"{len(ours.result)} classes, {len(features.labels)} regions x {features.layers['fc7']}, "
        f"best of {repeats}\n\n"
        "| | seconds | over one reading | CPU seconds | over one reading |\n"
        "|---|---:|---:|---:|---:|"
    )
    for what, one in {
        "read the layer once, nothing else": read,
        "train-svm, all classes (positives, mining, every fit)": ours,
        "the same with LinearSVC for every fit": with_liblinear,
        f"LinearSVC on the last sets alone ({rows} rows in all)": peer,
        "dual solver on the last sets, from zero": cold,
        "each class reading for itself, LinearSVC (computed)": each,
    }.items():
        print(
            f"| {what} | {one.seconds:.2f} | {one.seconds / read.seconds:.2f} "
            f"| {one.cpu:.2f} | {one.cpu / read.cpu:.2f} |"
        )
    print("\n| class | positives | cached | fits | objective | LinearSVC's | difference | gap |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for number, (one, peer) in enumerate(zip(ours.result, peers, strict=True), start=1):
        print(
            f"| {number} | {one.positives} | {one.negatives_cached} | {one.fits} "
            f"| {one.objective:.8f} | {peer.result.objective:.8f} "
            f"| {one.objective / peer.result.objective - 1:+.1e} | {one.gap:.1e} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--file", type=Path, help="Keep the drawn features here, or use them.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or Path(folder) / "features.h5"
        if not path.exists():
            write_features(path, args.images, args.rows, args.width, args.classes)
        with open_features(path, cores()) as features:
            measure(features, args.repeats)


if __name__ == "__main__":
    main()
