"""A tiny pipeline: six drawn images, the demo network, a few iterations; and its commands."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from rcnnpipe.cli import main

SIZE = (100, 120)  # height, width
SPLITS = {"train": 5, "test": 3}
COLOURS = {"red": (210, 30, 30), "blue": (30, 30, 210)}
DEMO = ("--network", "demo", "--batch-size", "8", "--device", "cpu")
ROUNDS = ("--iterations", "12", "--batch-size", "16", "--foreground", "4", "--device", "cpu")
OFTEN = ("--checkpoint-every", "3", "--log-every", "3")
PYRAMID = ("--pyramid", "1,2", "--hidden", "16", "--scales", "60,110")


def run(*words: object) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(main, [str(word) for word in words])


def ran(*words: object) -> Result:
    """The same, which must end well."""
    result = run(*words)
    assert result.exit_code == 0, result.output or repr(result.exception)
    return result


def draw_coco(root: Path) -> Path:
    """A COCO folder of coloured rectangles on noise; the last image of train is empty."""
    random = np.random.default_rng(0)
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS, 1)]
    for place, (split, count) in enumerate(SPLITS.items()):
        document: dict[str, Any] = {"categories": categories, "images": [], "annotations": []}
        for number in range(count):
            image_id = 100 * place + number
            pixels = random.integers(70, 180, (*SIZE, 3), np.uint8)
            empty = split == "train" and number == count - 1
            for category, colour in enumerate(() if empty else COLOURS.values(), 1):
                x, y = (int(random.integers(5, 45)) + 50 * (category - 1), int(random.integers(50)))
                width, height = (int(side) for side in random.integers(22, 40, 2))
                width = min(width, SIZE[1] - x)
                pixels[y : y + height, x : x + width] = colour
                document["annotations"].append(
                    {
                        "id": 1000 * place + len(document["annotations"]) + 1,
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
            file = f"{number}.png"
            path = root / "images" / split / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            height, width = SIZE
            document["images"].append(
                {"id": image_id, "file_name": file, "height": height, "width": width}
            )
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    return root


def change_coco(
    root: Path, split: str, change: Callable[[dict[str, Any]], object | None]
) -> dict[str, Any]:
    """Change a split's document in place; ``change`` may return another one instead."""
    path = root / "annotations" / f"instances_{split}.json"
    document: dict[str, Any] = json.loads(path.read_text())
    changed: Any = change(document)
    path.write_text(json.dumps(changed if isinstance(changed, dict) else document))
    return document


@dataclass(frozen=True)
class Made:
    """The folder of a pipeline that ran: ``data`` and the files named below."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        """``made.model`` is ``model.h5``; data and scores are folders."""
        return self.folder / (name if name in ("data", "faulty", "scores") else f"{name}.h5")


def commands(made: Made) -> dict[str, tuple[str, list[object]]]:
    """Stage -> (name of what it writes, its command line up to --out).

    Stages that do their work in two ways stand there twice.
    """
    train, test = ([made.data, "--split", split] for split in SPLITS)
    proposed = ["propose", "--max-boxes", 60, "--min-size", 10, "--workers", 1]
    model, detections = ["--model", made.model], made.detections
    linear = ["--svm", made.svm, "--bbox-reg", made.bbox_reg]
    features = ["--proposals", made.proposals, *model, "--layers", "pool5,fc7", "--device", "cpu"]
    tuned = ["--proposals", made.proposals, "--init", made.pretrained, *ROUNDS, *OFTEN]
    pooled = ["--proposals", made.proposals, "--model", made.pyramid, "--layers", "pool5"]
    learnt = ["--system", "sppnet", "--features", made.pooled, "--init", made.pyramid]
    fast = ["--system", "fast", "--scales", 100]
    faster = ["--system", "faster", "--scales", 100, "--init", made.pretrained, *ROUNDS, *OFTEN]
    found = ["--method", "rpn", "--model", made.faster, "--min-size", 10, "--device", "cpu"]
    return {
        "prepare": ("shapes", ["prepare", "shapes", "--images", "train=4,val=2"]),
        "check": ("quarantine.json", ["check", made.faulty, "--fix"]),
        "pretrain": ("w.h5", ["pretrain", *train, *DEMO, "--epochs", 6]),
        "propose": ("p.h5", [*proposed, *train]),
        "finetune": ("m.h5", ["finetune", *train, *tuned]),
        "extract-features": ("f.h5", ["extract-features", *train, *features]),
        "train-svm": ("s.h5", ["train-svm", made.features]),
        "train-bbox-reg": ("b.h5", ["train-bbox-reg", made.features]),
        "detect": ("d.h5", ["detect", *test, *model, *linear, "--device", "cpu"]),
        "evaluate": ("scores", ["evaluate", detections, "--data", *test]),
        "pretrain-pyramid": ("y.h5", ["pretrain", *train, *DEMO, *PYRAMID, "--epochs", 3]),
        "pool": (
            "q.h5",
            ["extract-features", *train, *pooled, "--random-scales", "--mirror", "--device", "cpu"],
        ),
        "finetune-pooled": ("n.h5", ["finetune", *learnt, *ROUNDS, *OFTEN]),
        "finetune-fast": ("o.h5", ["finetune", *train, *tuned, *fast]),
        "detect-fast": ("e.h5", ["detect", *test, "--model", made.detector, "--device", "cpu"]),
        "finetune-faster": ("g.h5", ["finetune", *train, *faster]),
        "propose-rpn": ("h.h5", ["propose", *train, *found]),
        "compress": ("c.h5", ["compress", made.model, "--layers", "fc6:16,fc7:8"]),
        "suppress-anew": ("a.h5", ["detect", *test, "--candidates", made.candidates]),
        "compare": ("table.md", ["compare", made.scores]),
        "show": ("shown", ["show", *test, "--detections", detections, "--size", 100]),
        "export": ("r.json", ["export", detections, "--format", "coco", "--data", *test]),
        "export-weights": ("w.safetensors", ["export", made.model, "--format", "safetensors"]),
    }


def out_of(stage: str) -> str:
    """The option that says where a stage writes."""
    return "--quarantine" if stage == "check" else "--out"


def make(folder: Path) -> Made:
    """Run the whole pipeline into a folder."""
    made = Made(folder)
    draw_coco(made.data)
    change_coco(draw_coco(made.faulty), "train", _spoil)
    planned = commands(made)
    for stage, name in {
        "pretrain": "pretrained",
        "propose": "proposals",
        "finetune": "model",
        "extract-features": "features",
        "train-svm": "svm",
        "train-bbox-reg": "bbox_reg",
        "detect": "detections",
        "evaluate": "scores",
        "pretrain-pyramid": "pyramid",
        "pool": "pooled",
        "finetune-fast": "detector",
        "finetune-faster": "faster",
    }.items():
        ran(*planned[stage][1], out_of(stage), getattr(made, name))
    ran(*planned["detect"][1], "--keep-candidates", "--out", made.candidates)
    return made


def _spoil(document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"][2] = 0
    document["annotations"][3]["bbox"][0] = 1000


def tree(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
