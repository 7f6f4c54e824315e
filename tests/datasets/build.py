"""Small data sets of each format, written as other tools write them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 60)  # height, width of every image


def image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def voc_object(name: str, box: Sequence[object], **fields: object) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    others = "".join(f"<{key}>{value}</{key}>" for key, value in fields.items())
    return f"<object><name>{name}</name>{others}<bndbox>{inner}</bndbox></object>"


def voc_xml(*objects: str, size: tuple[int, int] | None = SIZE, filename: str = "") -> str:
    said = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    return (
        f"<annotation><filename>{filename}</filename>{said}\n"
        + "\n".join(objects)
        + "\n</annotation>"
    )


def voc(root: Path, annotations: Mapping[str, str], **splits: Sequence[str]) -> Path:
    """A VOC folder: an image and an xml for each annotation, the lists given."""
    (root / "Annotations").mkdir(parents=True)
    for name, text in annotations.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        image(root / "JPEGImages" / f"{name}.jpg")
    for split, names in splits.items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return root


def coco_document(
    annotations: Sequence[Mapping[str, Any]] = (), images: int = 2, **more: Any
) -> dict[str, Any]:
    """A COCO document of images 1, 2, ... and the sparse categories 3 cat, 7 dog."""
    height, width = SIZE
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": height, "width": width}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [5, 6, 10, 8], **given}
            for i, given in enumerate(annotations, 1)
        ],
        **more,
    }


def coco(root: Path, document: Mapping[str, Any], split: str = "train") -> Path:
    """A COCO folder with the document as ``instances_SPLIT.json`` and its images."""
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    for entry in document["images"]:
        if ".." not in entry["file_name"]:
            image(root / "images" / entry["file_name"])
    return root


def yolo(root: Path, labels: Mapping[str, str], names: str = "names: [cat, dog]") -> Path:
    """A YOLO folder with an image for each label text."""
    for name, text in labels.items():
        image(root / "images" / f"{name}.png")
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "data.yaml").write_text(names)
    return root
