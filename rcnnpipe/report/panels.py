"""The panels of an image in one row: ground truth, proposals, detections, mistakes; or views."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from rcnnpipe import boxes as box_ops
from rcnnpipe.datasets.masks import masks_of
from rcnnpipe.datasets.records import Record
from rcnnpipe.report.drawing import FAINT, INK, PAPER, Picture, class_colour, fitted, font, rgb
from rcnnpipe.report.mistakes import Judged, judge

KINDS = ("truth", "proposals", "detections", "errors")
_COLOURS = {
    "found": rgb("#3ddc5b"),
    "duplicate": rgb("#ffb000"),
    "localisation": rgb("#fff23a"),
    "confusion": rgb("#ff4fa3"),
    "background": rgb("#ff4a3d"),
    "missed": rgb("#00c2ff"),
}
_FEW = 8  # objects whose names still fit beside the numbers
_GROUND = rgb("#f4f4f4")


@dataclass(frozen=True)
class Marks:
    """What is known about one image, besides its ground truth.

    Attributes:
        proposals: (R, 4) best first, or None.
        boxes, labels, scores: (D, 4), (D,), (D,) detections by falling score, or None.
        thresholds: label -> least score of a detection that is shown.
    """

    proposals: npt.NDArray[np.float32] | None = None
    boxes: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.int64] | None = None
    scores: npt.NDArray[np.float32] | None = None
    thresholds: dict[int, float] | None = None

    def shown(
        self,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Boxes, labels and scores of the detections that reach their class's threshold."""
        assert self.boxes is not None
        assert self.labels is not None
        assert self.scores is not None
        least = np.array([(self.thresholds or {}).get(int(label), 0.0) for label in self.labels])
        keep = self.scores >= least
        return self.boxes[keep], self.labels[keep], self.scores[keep]


def draw_row(
    record: Record,
    pixels: npt.NDArray[np.uint8],
    classes: Sequence[str],
    marks: Marks,
    kinds: Sequence[str],
    longest: int = 640,
    top: int = 50,
) -> Image.Image:
    """The panels of one image side by side.

    Args:
        record: its ground truth.
        pixels: (H, W, 3).
        classes: names of the labels.
        marks: proposals and detections, where ``kinds`` asks for them.
        kinds: which panels, of ``KINDS``, in order.
        longest: longer side of a panel's picture, in pixels.
        top: how many proposals are drawn.
    """
    panels = []
    for kind in kinds:
        picture = Picture(pixels, longest)
        if kind == "truth":
            words = _draw_truth(picture, record, classes)
        elif kind == "proposals":
            words = _draw_proposals(picture, record, marks, classes, top)
        elif kind == "detections":
            words = _draw_detections(picture, marks, classes)
        else:
            words = _draw_mistakes(picture, record, marks, classes)
        panels.append(_framed(picture, *words))
    height, width = record.size
    return beside(panels, f"{record.image_id}  ({width} x {height})", longest)


@dataclass(frozen=True)
class View:
    """One way to see an image.

    Attributes:
        title, words: above it; the number of its objects is added.
        record: its objects, in the view's pixels.
        pixels: (H, W, 3).
    """

    title: str
    words: str
    record: Record
    pixels: npt.NDArray[np.uint8]


def draw_views(
    record: Record, views: Sequence[View], classes: Sequence[str], longest: int = 640
) -> Image.Image:
    """Several ways to see one image side by side, with the objects of each.

    Args:
        record: the image.
        views: of it.
        classes: names of the labels.
        longest: longer side of a panel's picture, in pixels.
    """
    panels = []
    for view in views:
        picture = Picture(view.pixels, longest)
        _, objects = _draw_truth(picture, view.record, classes)
        words = ", ".join(part for part in (view.words, objects) if part)
        panels.append(_framed(picture, view.title, words))
    height, width = record.size
    return beside(panels, f"{record.image_id}  ({width} x {height})", longest)


def sheet(rows: Sequence[Image.Image], widest: int = 1600) -> Image.Image:
    """Rows of panels as one picture, several beside each other where they are narrow."""
    columns = max(1, min(len(rows), widest // max(row.width for row in rows)))
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    heights = [max(row.height for row in line) for line in lines]
    width = max(sum(row.width for row in line) for line in lines)
    whole = Image.new("RGB", (width, sum(heights)), PAPER)
    y = 0
    for line, height in zip(lines, heights, strict=True):
        x = 0
        for row in line:
            whole.paste(row, (x, y))
            x += row.width
        y += height
    return whole


def _draw_truth(picture: Picture, record: Record, classes: Sequence[str]) -> tuple[str, str]:
    for label, mask in zip(record.labels.tolist(), masks_of(record), strict=False):
        if mask is not None:
            picture.mask(mask, class_colour(label))
    for number, box in enumerate(record.boxes.tolist()):
        flags = [
            name
            for name, flag in (("difficult", record.difficult), ("crowd", record.crowd))
            if flag[number]
        ]
        name = classes[record.labels[number]] + (f" ({', '.join(flags)})" if flags else "")
        picture.box(box, class_colour(int(record.labels[number])), name, dashed=bool(flags))
    if record.keypoints is not None:
        for number, points in enumerate(record.keypoints):
            picture.points(points, class_colour(int(record.labels[number])))
    return "Ground truth", _many(len(record.boxes), "object")


def _draw_proposals(
    picture: Picture, record: Record, marks: Marks, classes: Sequence[str], top: int
) -> tuple[str, str]:
    assert marks.proposals is not None
    proposals = marks.proposals
    picture.faint_boxes(proposals[:top], PAPER)
    found = 0
    if len(proposals) and len(record.boxes):
        truth = torch.from_numpy(record.boxes)
        overlaps = box_ops.iou(torch.from_numpy(proposals).double(), truth).numpy()  # (R, G)
        for number, label in enumerate(record.labels.tolist()):
            best = int(overlaps[:, number].argmax())
            iou = float(overlaps[best, number])
            found += iou >= 0.5
            if iou > 0:
                name = classes[label] if len(record.boxes) <= _FEW else ""
                words = f"{name} {iou:.2f}, no. {best + 1}".strip()
                picture.box(proposals[best].tolist(), class_colour(label), words)
    words = f"{min(top, len(proposals))} of {len(proposals)}"
    if len(record.boxes):
        words += f"; {found} of {_many(len(record.boxes), 'object')} at IoU 0.5"
    return "Proposals", words


def _draw_detections(picture: Picture, marks: Marks, classes: Sequence[str]) -> tuple[str, str]:
    boxes, labels, scores = marks.shown()
    # The surest on top.
    for box, label, score in zip(boxes[::-1], labels[::-1], scores[::-1], strict=True):
        picture.box(box.tolist(), class_colour(int(label)), f"{classes[label]} {score:.3g}")
    total = 0 if marks.scores is None else len(marks.scores)
    return "Detections", f"{len(boxes)} of {total}" + _limits(marks, labels)


def _limits(marks: Marks, labels: npt.NDArray[np.int64]) -> str:
    """The thresholds, when few enough to be said."""
    chosen = {(marks.thresholds or {}).get(int(label), 0.0) for label in labels}
    return f", score {chosen.pop():.3g} or more" if len(chosen) == 1 else ""


def _draw_mistakes(
    picture: Picture, record: Record, marks: Marks, classes: Sequence[str]
) -> tuple[str, str]:
    boxes, labels, scores = marks.shown()
    judged: Judged = judge(record, boxes, labels)
    for number in judged.missed:
        name = f"missed {classes[record.labels[number]]}"
        picture.box(record.boxes[number].tolist(), _COLOURS["missed"], name, dashed=True)
    ignored = [number for number, kind in enumerate(judged.kinds) if kind == "ignored"]
    picture.faint_boxes(boxes[ignored], PAPER)
    for number in sorted(range(len(boxes)), key=lambda i: judged.kinds[i] != "found"):
        kind = judged.kinds[number]
        if kind == "ignored":
            continue
        words = ""
        if kind != "found":
            words = f"{kind}: {classes[labels[number]]} {scores[number]:.3g}"
        picture.box(boxes[number].tolist(), _COLOURS[kind], words)
    found = judged.kinds.count("found")
    false = len(judged.kinds) - found - len(ignored)
    return "Mistakes", f"{found} found, {false} false, {len(judged.missed)} missed"


def _framed(picture: Picture, title: str, words: str) -> Image.Image:
    """A picture under its title and a line of words."""
    size = picture.letters
    image = picture.finished()
    line = sum(font(size).getmetrics()) + 2
    width = max(image.width, 14 * size)  # room for a title over a narrow image
    framed = Image.new("RGB", (width, image.height + 2 * line + 4), PAPER)
    draw = ImageDraw.Draw(framed)
    draw.text((2, 0), fitted(title, size, width - 4), fill=INK, font=font(size))
    draw.text((2, line), fitted(words, size, width - 4), fill=FAINT, font=font(size))
    framed.paste(image, (0, 2 * line + 4))
    return framed


def beside(panels: Sequence[Image.Image], title: str, longest: int) -> Image.Image:
    """Panels in a row under a title, with the letters of pictures so long."""
    gap = max(6, longest // 60)
    size = max(12, round(longest / 32))
    line = sum(font(size).getmetrics()) + gap
    width = sum(panel.width + gap for panel in panels) + gap
    height = max(panel.height for panel in panels) + line + 2 * gap
    row = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(row)
    draw.rectangle((0, 0, width, line - 1), fill=_GROUND)
    words = fitted(title, size, width - 2 * gap)
    draw.text((gap, gap // 2), words, fill=INK, font=font(size))
    x = gap
    for panel in panels:
        row.paste(panel, (x, line + gap))
        x += panel.width + gap
    return row


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
