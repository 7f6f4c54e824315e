"""What pycocotools says of a data set and results given in our columns."""

import contextlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rcnnpipe.evaluation.columns import Results, Truth


def _stated(box: npt.NDArray[np.float64]) -> list[float]:
    return [box[0], box[1], round(box[2] - box[0], 6), round(box[3] - box[1], 6)]


def evaluate(truth: Truth, results: Results) -> Any:
    """A COCOeval of boxes after accumulate and summarize; ids are indices plus 1."""
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image + 1} for image in range(len(truth.image_ids))],
        "categories": [{"id": label} for label in range(1, len(truth.classes))],
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(truth.images[number]) + 1,
                "category_id": int(truth.labels[number]),
                "bbox": _stated(truth.boxes[number]),
                "area": float(truth.areas[number]),
                "iscrowd": int(truth.crowd[number]),
            }
            for number in range(len(truth.labels))
        ],
    }
    rows = [
        {
            "image_id": int(results.images[number]) + 1,
            "category_id": int(results.labels[number]),
            "bbox": _stated(results.boxes[number]),
            "score": float(results.scores[number]),
        }
        for number in range(len(results.labels))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
