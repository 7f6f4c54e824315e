"""Tables as CSV and plots as PNG of what was evaluated; equal input gives equal bytes."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rcnnpipe.evaluation.curves import thin
from rcnnpipe.evaluation.recall import IOU_AXIS, Coverage
from rcnnpipe.evaluation.voc import VocScores

_MOST_POINTS = 4000  # of all classes together: a few hundred kilobytes of CSV
_MOST_LABELLED = 10  # curves with a name of their own
CURVE_LIMITS = (300, 1000, 2000)  # Faster R-CNN, figure of recall against overlap


def csv_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows with a heading; the columns of all rows, what a row lacks is empty; 6 digits."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()}
        )
    return text.getvalue().encode()


def precision_recall_rows(classes: Sequence[str], voc: VocScores) -> list[dict[str, Any]]:
    """Class, recall, precision, score: at most 200 points a class, fewer where classes are many."""
    points = max(20, min(200, _MOST_POINTS // max(1, len(classes) - 1)))
    rows = []
    for name, curve in zip(classes, voc.curves, strict=True):
        if curve is not None:
            curve = thin(curve, points)
            columns = (curve.recall.tolist(), curve.precision.tolist(), curve.scores.tolist())
            rows += [
                {"class": name, "recall": recall, "precision": precision, "score": score}
                for recall, precision, score in zip(*columns, strict=True)
            ]
    return rows


def recall_rows(coverage: Coverage) -> list[dict[str, Any]]:
    """Recall at .5 and .7, AR and MABO against the number of proposals."""
    return [
        {
            "proposals": limit,
            "recall_50": coverage.recall(0.5, limit),
            "recall_70": coverage.recall(0.7, limit),
            "ar": coverage.average_recall(limit),
            "mabo": coverage.mean_average_best_overlap(limit),
        }
        for limit in coverage.limits
    ]


def recall_iou_rows(coverage: Coverage) -> list[dict[str, Any]]:
    """Recall against the overlap asked for, at 300, 1,000 and 2,000 proposals."""
    curves = {f"recall_{limit}": coverage.recall_by_iou(limit) for limit in CURVE_LIMITS}
    return [
        {"iou": float(iou)} | {name: float(curve[row]) for name, curve in curves.items()}
        for row, iou in enumerate(IOU_AXIS)
    ]


def precision_recall_png(classes: Sequence[str], voc: VocScores) -> bytes:
    """Precision against recall of every class; of many classes only the mean has a name."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    curves = [(label, curve) for label, curve in enumerate(voc.curves) if curve is not None]
    few = len(curves) <= _MOST_LABELLED
    grid = np.linspace(0, 1, 101)
    levels = []
    for label, curve in curves:
        envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
        levels.append(np.append(envelope, 0.0)[np.searchsorted(curve.recall, grid, side="left")])
        shown = thin(curve, 2000)
        style = {"label": f"{classes[label]} {voc.area[label]:.3f}"} if few else {"color": "0.8"}
        axes.plot(shown.recall, shown.precision, linewidth=1.2 if few else 0.6, **style)  # type: ignore[arg-type]
    if len(curves) > 1:
        mean = f"mean {np.nanmean(voc.area):.3f}"
        axes.plot(grid, np.mean(levels, axis=0), color="black", linewidth=2, label=mean)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"Precision and recall at overlap {voc.rules.iou:g} (area under the curve)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _png(figure)


def recall_png(coverage: Coverage) -> bytes:
    """Recall against the number of proposals, and against the overlap asked for."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    by_number, by_overlap = figure.subplots(1, 2)
    rows = recall_rows(coverage)
    names = {"recall_50": "recall at .5", "recall_70": "recall at .7", "ar": "AR", "mabo": "MABO"}
    for name, label in names.items():
        by_number.plot(coverage.limits, [row[name] for row in rows], marker=".", label=label)
    by_number.set_xscale("log")
    by_number.set(xlabel="proposals an image", ylim=(0, 1.02))
    for limit in CURVE_LIMITS:
        by_overlap.plot(IOU_AXIS, coverage.recall_by_iou(limit), label=f"{limit} proposals")
    by_overlap.set(xlabel="overlap (IoU)", ylabel="recall", xlim=(0.5, 1), ylim=(0, 1.02))
    for axes in (by_number, by_overlap):
        _finish(axes)
    return _png(figure)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _png(figure: Figure) -> bytes:
    """The image without the metadata that changes from one installation to the next."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def proposal_class_rows(coverage: Coverage, limit: int) -> Iterable[dict[str, Any]]:
    """Per class: objects, average best overlap, recall at .5 and .7 of the first ``limit``."""
    own = coverage.own[coverage.limits.index(limit)]
    overlaps = coverage.average_best_overlap(limit)
    for label, name in enumerate(coverage.classes):
        of_class = own[coverage.labels == label]
        if label:
            row: dict[str, Any] = {"class": name, "objects": len(of_class)}
            if len(of_class):
                row |= {
                    f"abo_{limit}": float(overlaps[label]),
                    f"recall_50_{limit}": float((of_class >= 0.5).mean()),
                    f"recall_70_{limit}": float((of_class >= 0.7).mean()),
                }
            yield row
