"""The drawn demo set on disk: PNG images and COCO json with boxes, masks, keypoints and crowds.

Two sets are drawn: ``shapes``, the detection task, and ``shapes-pretrain``, other shapes on which a
network learns first, as the paper's learns on ImageNet. Unhidden shapes have polygon masks, hidden
ones compressed RLEs, crowds uncompressed ones, so that every reader's branch is used.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from rcnnpipe.datasets.masks import rle_from
from rcnnpipe.datasets.outlines import (
    OTHER_SHAPES,
    SHAPES,
    Outline,
    clip_polygon,
    polygon_area,
)
from rcnnpipe.datasets.scenes import DIFFICULT, Scene, Shape, draw_scene, visible_bounds
from rcnnpipe.errors import DataError
from rcnnpipe.randomness import generator

VERSION = 1  # raised whenever the same seed would draw something else
MANIFEST = "drawn.json"
KEYPOINTS = ("centre", "top", "right", "bottom", "left")

SETS: Final[Mapping[str, Mapping[str, Outline]]] = {
    "shapes": SHAPES,
    "shapes-pretrain": OTHER_SHAPES,
}
COUNTS: Final[Mapping[str, Mapping[str, int]]] = {
    "shapes": {"train": 120, "val": 40, "test": 60},
    "shapes-pretrain": {"train": 300, "val": 60},
}


def is_drawn(out: Path, name: str, counts: Mapping[str, int], seed: int) -> bool:
    """Whether ``out`` holds this very set already.

    Raises:
        DataError: it holds anything else, which is not overwritten.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        settings = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{out} exists and is no drawn set; choose another --out or remove it"
        ) from error
    if settings != _settings(name, counts, seed):
        raise DataError(
            f"{out} holds a set drawn with other settings ({json.dumps(settings)}); "
            "choose another --out or remove it"
        )
    for split, count in counts.items():
        there = sum(1 for _ in (out / "images" / split).glob("*.png"))
        if there != count:
            raise DataError(
                f"{out} was drawn with these settings, but has {there} of {count} images of "
                f"{split} left; remove it to draw it again"
            )
    return True


def draw_set(out: Path, name: str, counts: Mapping[str, int], seed: int) -> Iterator[str]:
    """Draw a set into ``out``, yielding after each image; nothing is there before all is.

    Args:
        out: the folder to make: ``images/SPLIT/*.png``, ``annotations/instances_SPLIT.json``.
        name: a key of ``SETS``.
        counts: images of each split.
        seed: each image depends on it, on the set's and the split's name and its number alone.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "annotations").mkdir(parents=True)
    for place, (split, count) in enumerate(counts.items()):
        folder = partial / "images" / split
        folder.mkdir(parents=True)
        document = _document(list(SETS[name]))
        for number in range(count):
            scene = draw_scene(SETS[name], generator(seed, name, split, number))
            file = f"{number:05}.png"
            Image.fromarray(scene.pixels).save(folder / file)
            _add_image(document, scene, 1_000_000 * place + number, file)
            yield f"{split}/{file}"
        text = json.dumps(document, separators=(",", ":"))
        (partial / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    manifest = json.dumps(_settings(name, counts, seed), indent=1) + "\n"
    (partial / MANIFEST).write_text(manifest, encoding="utf-8")
    if out.is_dir():
        out.rmdir()  # empty, as is_drawn saw to
    os.replace(partial, out)


def _settings(name: str, counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    return {"set": name, "version": VERSION, "images": dict(counts), "seed": seed}


def _document(names: list[str]) -> dict[str, list[Any]]:
    categories = [
        {"id": number, "name": name, "supercategory": "shape", "keypoints": KEYPOINTS}
        for number, name in enumerate(names, 1)
    ]
    return {"categories": categories, "images": [], "annotations": []}


def _add_image(document: dict[str, list[Any]], scene: Scene, image_id: int, file: str) -> None:
    height, width = scene.pixels.shape[:2]
    document["images"].append({"id": image_id, "file_name": file, "height": height, "width": width})
    names = [category["name"] for category in document["categories"]]
    for shape in scene.shapes:
        document["annotations"].append(
            {
                "id": len(document["annotations"]) + 1 + 1_000_000 * (image_id // 1_000_000),
                "image_id": image_id,
                "category_id": names.index(shape.name) + 1,
                **_annotation(shape),
            }
        )


def _annotation(shape: Shape) -> dict[str, Any]:
    x1, y1, x2, y2 = visible_bounds(shape)
    annotation: dict[str, Any] = {
        "bbox": _rounded([x1, y1, x2 - x1, y2 - y1]),
        "iscrowd": int(shape.crowd),
    }
    if shape.crowd:
        return {
            **annotation,
            "area": int(shape.visible.sum()),
            "segmentation": _uncompressed(shape.visible),
        }
    if shape.hidden:
        rle = rle_from(shape.visible)
        segment: Any = {"size": list(shape.visible.shape), "counts": rle["counts"].decode("ascii")}
        area = float(shape.visible.sum())
    else:
        polygon = clip_polygon(shape.outline, (shape.visible.shape[0], shape.visible.shape[1]))
        segment, area = [_rounded(polygon.ravel().tolist())], polygon_area(polygon)
    points = _keypoints(shape)
    return {
        **annotation,
        "area": round(area, 2),
        "segmentation": segment,
        "difficult": int(shape.share < DIFFICULT),
        "truncated": int(shape.truncated or shape.hidden),
        "keypoints": points,
        "num_keypoints": sum(visibility > 0 for visibility in points[2::3]),
    }


def _keypoints(shape: Shape) -> list[float]:
    """Centre and the four extreme points of the whole outline; 2 seen, 1 hidden, 0 outside."""
    height, width = shape.visible.shape
    x, y = shape.outline.T
    extremes = [shape.outline[i] for i in (y.argmin(), x.argmax(), y.argmax(), x.argmin())]
    points: list[float] = []
    for px, py in [shape.centre, *extremes]:
        if not (0 <= px < width and 0 <= py < height):
            points += [0.0, 0.0, 0]
            continue
        points += [*_rounded([px, py]), 1 if shape.covered[int(py), int(px)] else 2]
    return points


def _rounded(values: list[float]) -> list[float]:
    return [round(float(value), 2) for value in values]


def _uncompressed(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's run lengths down the columns, the first of zeros."""
    flat = np.concatenate([[False], mask.T.ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], starts, [mask.size]]))
    return {"size": list(mask.shape), "counts": runs.tolist()}
