"""COCO evaluation of a simulated set beside pycocotools and faster-coco-eval.

    python -m tests.benchmarks.bench_evaluate [--images 5000] [--classes 80] [--detections 100]

Each tool runs in a process of its own. Time is from inputs in memory to the twelve numbers, loading
apart; memory is the peak of the process over its peak after the imports, loaded inputs included.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Stats = list[float]
Loaded = tuple[Callable[[], Stats], float]


def simulate(images: int, classes: int, detections: int, seed: int = 0) -> dict[str, Any]:
    """Columns of a data set of 640 x 480 images and of a fair detector's results on it."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(7, images)
    truth_images = np.repeat(np.arange(images), counts)
    size = np.exp(rng.normal(4.0, 0.9, (len(truth_images), 2))).clip(4, 400)
    corner = rng.uniform(0, 1, size.shape) * (np.array([640, 480]) - size).clip(1)
    truth_boxes = np.round(np.concatenate([corner, size], axis=1), 2)
    truth_labels = rng.integers(1, classes + 1, len(truth_images))
    found_images = np.repeat(np.arange(images), detections)
    D = len(found_images)
    # Half of the detections are shaken copies of an object of their image, often of its class.
    starts = np.concatenate([[0], np.cumsum(counts)])
    of = starts[found_images] + (rng.uniform(size=D) * counts[found_images]).astype(np.int64)
    copies = (rng.uniform(size=D) < 0.5) & (counts[found_images] > 0)
    source = truth_boxes[np.where(copies, of, 0)]
    shaken = source + rng.normal(0, 0.12, (D, 4)) * source[:, [2, 3, 2, 3]]
    size = np.exp(rng.normal(4.0, 0.9, (D, 2))).clip(4, 400)
    free = np.concatenate([rng.uniform(0, 400, (D, 2)), size], axis=1)
    boxes = np.where(copies[:, None], shaken, free)
    boxes[:, 2:] = boxes[:, 2:].clip(1)
    right = copies & (rng.uniform(size=D) < 0.7)
    labels = np.where(right, truth_labels[np.where(copies, of, 0)], rng.integers(1, classes + 1, D))
    return {
        "images": images,
        "classes": classes,
        "truth_images": truth_images,
        "truth_boxes": truth_boxes,
        "truth_labels": truth_labels,
        "truth_crowd": rng.uniform(size=len(truth_images)) < 0.01,
        "found_images": found_images,
        "boxes": np.round(boxes, 2),
        "labels": labels,
        "scores": np.round(rng.beta(1, 4, D) + 0.3 * right, 4),
    }


def load_ours(data: dict[str, Any]) -> Callable[[], Stats]:
    from rcnnpipe.evaluation.coco import evaluate_coco
    from rcnnpipe.evaluation.columns import Results, Truth

    def corners(boxes: Any) -> Any:
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)

    extents = data["truth_boxes"][:, 2] * data["truth_boxes"][:, 3]
    truth = Truth(
        classes=("background", *(str(k) for k in range(int(data["classes"])))),
        image_ids=tuple(str(i) for i in range(int(data["images"]))),
        sizes=np.full((int(data["images"]), 2), 640),
        images=data["truth_images"],
        labels=data["truth_labels"],
        boxes=corners(data["truth_boxes"]),
        extents=extents,
        areas=extents,
        crowd=data["truth_crowd"],
        ignored=data["truth_crowd"],
    )
    extents = data["boxes"][:, 2] * data["boxes"][:, 3]
    results = Results(
        data["found_images"],
        data["labels"],
        data["scores"],
        corners(data["boxes"]),
        extents,
        extents,
    )
    return lambda: list(evaluate_coco(truth, results).stats().tolist())


def load_peer(data: dict[str, Any], tool: str) -> Callable[[], Stats]:
    if tool == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    boxes = data["truth_boxes"].tolist()
    truth = {
        "info": {},
        "images": [{"id": i, "height": 480, "width": 640} for i in range(int(data["images"]))],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(int(data["classes"]))],
        "annotations": [
            {
                "id": number + 1,
                "image_id": image,
                "category_id": label,
                "bbox": boxes[number],
                "area": boxes[number][2] * boxes[number][3],
                "iscrowd": crowd,
            }
            for number, (image, label, crowd) in enumerate(
                zip(
                    data["truth_images"].tolist(),
                    data["truth_labels"].tolist(),
                    data["truth_crowd"].astype(int).tolist(),
                    strict=True,
                )
            )
        ],
    }
    columns = (data[name].tolist() for name in ("found_images", "labels", "boxes", "scores"))
    rows = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, label, box, score in zip(*columns, strict=True)
    ]
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    results = coco.loadRes(rows)

    def run() -> Stats:
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return [float(value) for value in evaluation.stats[:12]]

    return run


def load(data: dict[str, Any], tool: str) -> Callable[[], Stats]:
    return load_ours(data) if tool == "rcnnpipe" else load_peer(data, tool)


def measure(tool: str, path: str) -> dict[str, Any]:
    """In a process of its own: a small run first (imports, compiled code), then the real one."""
    with contextlib.redirect_stdout(io.StringIO()):
        load(simulate(5, 3, 5), tool)()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        with np.load(path, allow_pickle=False) as file:
            run = load({name: file[name] for name in file.files}, tool)
        loaded = time.perf_counter()
        stats = run()
        end = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "load": loaded - start,
        "evaluate": end - loaded,
        "memory": (peak - before) / 1024,
        "peak": peak / 1024,
        "stats": stats,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        print(json.dumps(measure(options.tool, options.file)))
        return
    tools = ("rcnnpipe", "faster-coco-eval", "pycocotools")
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.npz"
        np.savez(path, **simulate(options.images, options.classes, options.detections))
        for tool in tools:
            command = [sys.executable, "-m", "tests.benchmarks.bench_evaluate"]
            run = subprocess.run(
                [*command, "--tool", tool, "--file", str(path)],
                stdout=subprocess.PIPE,
                check=True,
                env=os.environ,
            )
            figures[tool] = json.loads(run.stdout)
    ours = figures["rcnnpipe"]
    print(f"{options.images} images, {options.classes} classes, {options.detections} found each\n")
    print(
        "| tool | load s | evaluate s | times ours | memory MB | peak of process MB | differs by |"
    )
    print("|---|---|---|---|---|---|---|")
    for tool in tools:
        one = figures[tool]
        differs = np.abs(np.subtract(one["stats"], ours["stats"])).max()
        print(
            f"| {tool} {version(tool)} | {one['load']:.2f} | {one['evaluate']:.2f} "
            f"| {one['evaluate'] / ours['evaluate']:.0f} | {one['memory']:.0f} | {one['peak']:.0f} "
            f"| {differs:.1e} |"
        )


if __name__ == "__main__":
    main()
