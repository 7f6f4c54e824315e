"""evaluate: average precision of anybody's detections, recall of proposals, accuracy of models."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rcnnpipe.errors import ArtifactError, DataError, SettingError
from rcnnpipe.options import (
    StageCommand,
    device_option,
    json_option,
    say,
    split_option,
    workers_option,
)
from rcnnpipe.systems.pretraining import VIEWS

if TYPE_CHECKING:
    from rcnnpipe.datasets import Dataset
    from rcnnpipe.evaluation.columns import Results, Truth
    from rcnnpipe.evaluation.scores import Rules

VERSION = 1
# Options that say what is measured, of one kind of file alone.
_OF_MODELS = ("views", "scale")
_OF_REGIONS = ("metrics", "voc_ap", "iou", "voc_match", "voc_recalls", "difficult", "region")

_HELP = """Judge FILE: detections, proposals or a classifier.

FILE is a detections artifact, a COCO result json, a folder of VOC results
(comp4_det_SPLIT_CLASS.txt), a proposals artifact, or a model. The folder --out receives
metrics.json and per_class.csv, with pr.csv and pr.png for detections, recall.csv, recall_iou.csv
and recall.png for proposals, confusion.csv for a model.

VOC's metric takes the best-covered object of a detection, COCO's the best one still free. Difficult
objects and crowds are neither missed when not found nor false when found. Means leave out classes
without objects. Only annotations are read, no images.

A model is asked for the class of each annotated object, crowds apart, or of each image of a folder
of classes. Its probabilities are averaged over the views of --views: "crop" is one window, as
training sees it; "full" the whole image or object, for a network with a pyramid; "ten" corners and
centre, mirrored too; "multi" 96 views of six scales, and 2 of the whole for a network with a
pyramid. An object is seen with the context that the network's windows have.
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
@click.option(
    "--views", type=click.Choice(VIEWS), default="crop", help="What a model is shown of an example."
)
@click.option(
    "--scale",
    type=click.IntRange(min=1),
    help="Shorter side in pixels of what full shows, and of what crop and ten cut windows from.",
    show_default="256 for windows of 224",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=128, help="Views at once.")
@device_option
@workers_option
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, file: Path, data: Path, split: str | None, out: Path, **options: Any
) -> None:
    """Find out what FILE is, judge it, write the figures."""
    started = time.monotonic()
    from rcnnpipe.datasets import open_dataset
    from rcnnpipe.report.figures import json_bytes, write_files

    kind = _kind_of(file)
    _check_options(ctx, file, kind)
    _check_folder(out)
    dataset = open_dataset(data, split, need_images=kind == "model")
    if kind == "model":
        figures, files, lines = _judge_model(file, dataset, options)
    else:
        figures, files, lines = _judge_regions(file, kind, dataset, split, options)
    write_files(out, {"metrics.json": json_bytes(figures), **files})
    for line in lines:
        say(line)
    if options["as_json"]:
        click.echo(json_bytes(figures), nl=False)
    say(f"wrote {out} ({', '.join(['metrics.json', *files])}, {time.monotonic() - started:.1f} s)")


def _kind_of(file: Path) -> str:
    """detections, proposals or model (artifacts), coco, or comp4."""
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
        if header.kind not in ("detections", "proposals", "model"):
            told = "detections, proposals and models are evaluated"
            raise DataError(f"{file} holds {header.schema}; {told}")
        return header.kind


def _check_options(ctx: click.Context, file: Path, kind: str) -> None:
    """Refuse options that mean nothing to such a file."""
    for name in _OF_REGIONS if kind == "model" else _OF_MODELS:
        if ctx.get_parameter_source(name) != ParameterSource.DEFAULT:
            meant = "detections" if kind == "model" else "models"
            raise SettingError(
                f"--{name.replace('_', '-')} is for {meant}, and {file} holds none; leave it out"
            )
    region = ctx.params["region"]
    if kind != "coco" and region != "boxes":
        raise SettingError(f"{file} holds boxes; --region {region} needs a result json")


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


def _judge_model(file: Path, dataset: "Dataset", options: Mapping[str, Any]) -> Judged:
    from rcnnpipe.devices import choose_device
    from rcnnpipe.evaluation import tables
    from rcnnpipe.evaluation.classification import answers_of, labels_among
    from rcnnpipe.models.weights import read_network
    from rcnnpipe.progress import track
    from rcnnpipe.report.figures import judgement_lines
    from rcnnpipe.training.classifying import Classifier
    from rcnnpipe.training.examples import examples_of
    from rcnnpipe.training.views import views_of

    header, network = read_network(file)
    if network.outputs != len(header.classes):
        raise ArtifactError(
            f"{file} has {network.outputs} outputs for {len(header.classes)} classes with "
            "background, so it is no classifier of them; rcnnpipe pretrain makes one"
        )
    examples = examples_of(dataset)
    names = (examples.classes, dataset.name, header.classes, str(file))
    labels = labels_among(examples.labels, *names)
    views = views_of(options["views"], network, examples.whole_images, options["scale"])
    device = choose_device(options["device"])
    classifier = Classifier(
        *(network.to(device), examples, dataset.records, views, device),
        *(options["batch_size"], options["workers"]),
    )
    found = track(classifier.probabilities(), len(classifier.groups), "evaluate", "group")
    answers = answers_of(header.classes, labels, found)
    rows, figures = answers.per_class(), answers.metrics() | {"views": views.count}
    files = {"per_class.csv": tables.csv_bytes(rows), "confusion.csv": answers.confusion_csv()}
    notes = []
    if not answers.has_top5:
        notes.append("top-5 is left out, because the model has fewer than 5 classes")
    if options["views"] == "multi" and views.full is None:
        notes.append("whole images are not among the views, because there is no pyramid")
    return figures, files, judgement_lines(rows, figures, notes)


def _judge_regions(
    file: Path, kind: str, dataset: "Dataset", split: str | None, options: Mapping[str, Any]
) -> Judged:
    from rcnnpipe.evaluation.columns import truth_of

    truth = truth_of(dataset, count_difficult=options["difficult"] == "count")
    if kind == "proposals":
        return _judge_proposals(file, truth)
    results = _read_results(file, kind, dataset, truth, split, options["region"])
    return _judge_detections(results, truth, _rules(options))


def _judge_detections(results: "Results", truth: "Truth", rules: "Rules") -> Judged:
    from rcnnpipe.evaluation import tables
    from rcnnpipe.evaluation.scores import evaluate_detections
    from rcnnpipe.report.figures import judgement_lines

    scores = evaluate_detections(results, truth, rules)
    each, figures = scores.per_class(), scores.metrics()
    files = {"per_class.csv": tables.csv_bytes(each)}
    if scores.voc is not None:
        rows = tables.precision_recall_rows(scores.classes, scores.voc)
        files["pr.csv"] = tables.csv_bytes(rows)
        files["pr.png"] = tables.precision_recall_png(scores.classes, scores.voc)
    return figures, files, judgement_lines(each, figures, scores.notes)


def _judge_proposals(file: Path, truth: "Truth") -> Judged:
    from rcnnpipe.artifacts.proposals import read_proposals
    from rcnnpipe.evaluation import tables
    from rcnnpipe.evaluation.recall import evaluate_proposals
    from rcnnpipe.evaluation.scores import proposal_metrics
    from rcnnpipe.evaluation.stored import stored_proposals
    from rcnnpipe.report.figures import judgement_lines

    boxes, offsets, notes = stored_proposals(file, read_proposals(file), truth)
    coverage = evaluate_proposals(truth, boxes, offsets)
    figures = proposal_metrics(coverage)
    files = {
        "per_class.csv": tables.csv_bytes(tables.proposal_class_rows(coverage, 2000)),
        "recall.csv": tables.csv_bytes(tables.recall_rows(coverage)),
        "recall_iou.csv": tables.csv_bytes(tables.recall_iou_rows(coverage)),
        "recall.png": tables.recall_png(coverage),
    }
    return figures, files, judgement_lines(tables.recall_rows(coverage), figures, notes)
