"""evaluate: average precision of anybody's detections, recall of proposals."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.options import StageCommand, json_option, say, split_option

if TYPE_CHECKING:
    from rcnnpipe.datasets import Dataset
    from rcnnpipe.evaluation.columns import Results, Truth
    from rcnnpipe.evaluation.scores import Rules, Scores

VERSION = 1
# Shown on the terminal; per_class.csv holds all.
_MOST_CLASSES = 40
_ONLY_IN_CSV = ("detections", "true_positives", "best_f1_precision", "best_f1_recall")

_HELP = """Judge FILE: detections or proposals.

FILE is a detections artifact, a COCO result json, a folder of VOC results
(comp4_det_SPLIT_CLASS.txt), or a proposals artifact. The folder --out receives metrics.json and
per_class.csv, with pr.csv and pr.png for detections, recall.csv, recall_iou.csv and recall.png for
proposals.

VOC's metric takes the best-covered object of a detection, COCO's the best one still free. Difficult
objects and crowds are neither missed when not found nor false when found. Means leave out classes
without objects. Only annotations are read, no images.
"""


@click.command("evaluate", cls=StageCommand, help=_HELP)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The data set.")
@split_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--metrics",
    type=click.Choice(["voc", "coco", "all"]),
    default="all",
    help="Whose average precision.",
)
@click.option(
    "--voc-ap",
    type=click.Choice(["11-point", "area", "both"]),
    default="both",
    help="VOC's average: 11 recalls until 2009, the whole area from 2010 on.",
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    help="Least overlap of a true detection, by VOC's rule and in the curves.",
)
@click.option(
    "--voc-match",
    type=click.Choice(["reach", "exceed"]),
    default="reach",
    help="Whether the overlap must reach --iou (devkit) or exceed it (py-faster-rcnn).",
)
@click.option(
    "--voc-recalls",
    type=click.Choice(["tenths", "arange"]),
    default="tenths",
    help="The 11 recalls: exact, or py-faster-rcnn's floats, of which .3 and .6 lie too high.",
)
@click.option(
    "--difficult",
    type=click.Choice(["ignore", "count"]),
    default="ignore",
    help="Whether objects marked difficult have to be found.",
)
@click.option(
    "--region",
    type=click.Choice(["boxes", "masks", "keypoints"]),
    default="boxes",
    help="What COCO's metric compares; masks and keypoints are read from a result json.",
)
@json_option
def command(file: Path, data: Path, split: str | None, out: Path, **options: Any) -> None:
    """Find out what FILE is, judge it, write the figures."""
    started = time.monotonic()
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.evaluation.columns import truth_of

    kind = _kind_of(file)
    if kind != "coco" and options["region"] != "boxes":
        raise SettingError(f"{file} holds boxes; --region {options['region']} needs a result json")
    _check_folder(out)
    dataset = open_dataset(data, split, need_images=False)
    truth = truth_of(dataset, count_difficult=options["difficult"] == "count")
    if kind == "proposals":
        figures, files, lines = _judge_proposals(file, truth)
    else:
        results = _read_results(file, kind, dataset, truth, split, options["region"])
        figures, files, lines = _judge_detections(results, truth, _rules(options))
    _write(out, {"metrics.json": _json_bytes(figures), **files})
    for line in lines:
        say(line)
    if options["as_json"]:
        click.echo(_json_bytes(figures), nl=False)
    say(f"wrote {out} ({', '.join(['metrics.json', *files])}, {time.monotonic() - started:.1f} s)")


def _kind_of(file: Path) -> str:
    """detections or proposals (artifacts), coco, or comp4."""
    from rcnnpipe.artifacts.store import open_artifact
    from rcnnpipe.evaluation.comp4 import is_comp4_folder

    if file.is_dir():
        if not is_comp4_folder(file):
            raise DataError(f"{file} holds no comp4_det_SPLIT_CLASS.txt, the form of VOC results")
        return "comp4"
    if not file.is_file():
        raise DataError(f"{file} does not exist; `rcnnpipe detect` or `propose` makes one")
    if file.suffix.lower() == ".json":
        return "coco"
    with open_artifact(file) as (header, _):
        if header.kind not in ("detections", "proposals"):
            raise DataError(f"{file} holds {header.schema}; detections or proposals are evaluated")
        return header.kind


def _check_folder(out: Path) -> None:
    """Fail before the work, not after it."""
    if out.exists() and not out.is_dir():
        raise SettingError(f"--out {out} is a file; name a folder to write to")
    out.mkdir(parents=True, exist_ok=True)


def _read_results(
    file: Path, kind: str, dataset: "Dataset", truth: "Truth", split: str | None, region: Any
) -> "Results":
    from rcnnpipe.artifacts.detections import read_detections
    from rcnnpipe.evaluation.comp4 import read_comp4_results
    from rcnnpipe.evaluation.results import read_coco_results
    from rcnnpipe.evaluation.stored import stored_results

    if kind == "coco":
        return read_coco_results(file, truth, dataset.category_ids, region)
    if kind == "comp4":
        return read_comp4_results(file, truth, split)
    return stored_results(file, read_detections(file), truth)


def _rules(options: Mapping[str, Any]) -> "Rules":
    from rcnnpipe.evaluation.scores import Rules
    from rcnnpipe.evaluation.voc import VocRules

    above, arange = options["voc_match"] == "exceed", options["voc_recalls"] == "arange"
    return Rules(
        metrics=options["metrics"],
        voc_ap=options["voc_ap"],
        voc=VocRules(options["iou"], above, arange),
        region=options["region"],
    )


Judged = tuple[dict[str, float], dict[str, bytes], list[str]]


def _judge_detections(results: "Results", truth: "Truth", rules: "Rules") -> Judged:
    from rcnnpipe.evaluation import tables
    from rcnnpipe.evaluation.scores import evaluate_detections

    scores = evaluate_detections(results, truth, rules)
    files = {"per_class.csv": tables.csv_bytes(scores.per_class())}
    if scores.voc is not None:
        rows = tables.precision_recall_rows(scores.classes, scores.voc)
        files["pr.csv"] = tables.csv_bytes(rows)
        files["pr.png"] = tables.precision_recall_png(scores.classes, scores.voc)
    return scores.metrics(), files, _detections_text(scores)


def _judge_proposals(file: Path, truth: "Truth") -> Judged:
    from rcnnpipe.artifacts.proposals import read_proposals
    from rcnnpipe.evaluation import tables
    from rcnnpipe.evaluation.recall import evaluate_proposals
    from rcnnpipe.evaluation.scores import proposal_metrics
    from rcnnpipe.evaluation.stored import stored_proposals

    boxes, offsets, notes = stored_proposals(file, read_proposals(file), truth)
    coverage = evaluate_proposals(truth, boxes, offsets)
    figures = proposal_metrics(coverage)
    files = {
        "per_class.csv": tables.csv_bytes(tables.proposal_class_rows(coverage, 2000)),
        "recall.csv": tables.csv_bytes(tables.recall_rows(coverage)),
        "recall_iou.csv": tables.csv_bytes(tables.recall_iou_rows(coverage)),
        "recall.png": tables.recall_png(coverage),
    }
    lines = [*_table(tables.recall_rows(coverage)), "", *_figures(figures)]
    return figures, files, [*lines, *(f"note: {note}" for note in notes)]


def _detections_text(scores: "Scores") -> list[str]:
    rows = [
        {name: value for name, value in row.items() if name not in _ONLY_IN_CSV}
        for row in scores.per_class()
    ]
    lines = _table(rows[:_MOST_CLASSES])
    if len(rows) > _MOST_CLASSES:
        lines.append(f"  ... {len(rows) - _MOST_CLASSES} more classes in per_class.csv")
    return [*lines, "", *_figures(scores.metrics()), *(f"note: {note}" for note in scores.notes)]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    from rcnnpipe.report.text import table

    columns = list(dict.fromkeys(name for row in rows for name in row))
    titles = [name.replace("_", " ") for name in columns]
    return table(titles, [[_shown(row.get(name, "")) for name in columns] for row in rows])


def _figures(figures: Mapping[str, float]) -> list[str]:
    width = max(map(len, figures))
    return [f"  {name.ljust(width)}  {_shown(value)}" for name, value in figures.items()]


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _json_bytes(figures: Mapping[str, float]) -> bytes:
    return (json.dumps(figures, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each file whole or as it was before."""
    from rcnnpipe.report.files import whole_file

    for name, content in files.items():
        with whole_file(folder / name) as partial:
            partial.write_bytes(content)
