"""detect: mirrored images, several scales, soft suppression; what is recorded, what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcnnpipe.artifacts.bbox_reg import write_bbox_reg
from rcnnpipe.artifacts.detections import Detections, read_candidates, read_detections
from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.artifacts.svm import write_svm
from rcnnpipe.boxes import mirror
from rcnnpipe.datasets import Dataset, open_dataset
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.map_view import MapView
from rcnnpipe.models.parts import Parts
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import PyramidHead
from rcnnpipe.models.weights import put_on_pyramid
from rcnnpipe.ragged import rows_of
from rcnnpipe.systems import faster
from tests.artifacts_made import make_proposals
from tests.detectors_made import VIEW, detector_of
from tests.reference import suppression as slow
from tests.stages.made import ON_CPU, Files, open_header, run, sentence
from tests.stages.test_finetune import coco_of
from tests.training.made import CLASSES, SIZE, write_proposals

IMAGES = 3
ALL = ("--max-per-image", 0, "--max-per-set", 0, "--keep-candidates")
NEW = {"suppression", "sigma", "soft-floor", "class-agnostic", "flip"}


class Chain(Files):
    """Networks with random weights, two data sets and what detects in them.

    Attributes:
        kinds: of detection, with the options that make it.
        turned: the images mirrored, with their proposals.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.turned = Files(folder / "turned")
        regression = ("--bbox-reg", folder / "bbox_reg.h5")
        self.kinds = {
            "fast": ("--model", self.fast),
            "faster": ("--model", self.faster),
            "windows": ("--model", self.windows, *regression),
            "pyramid": ("--model", self.pyramid, "--no-refine"),
        }

    def candidates(self, kind: str, out: Path, *more: object, turned: bool = False) -> Detections:
        """All candidates of the images, or of the mirrored ones."""
        files = self.turned if turned else self
        proposals = () if kind == "faster" else ("--proposals", files.proposals)
        files.detect(out, *self.kinds[kind], *proposals, *(ALL + more))
        return read_candidates(out)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("detect"))
    dataset = open_dataset(coco_of(chain.folder / "data", IMAGES), "train")
    other = open_dataset(coco_of(chain.turned.folder / "data", IMAGES), "train")
    for record in other.records:
        with Image.open(record.path) as image:
            pixels = np.asarray(image)[:, ::-1].copy()
        Image.fromarray(pixels).save(record.path)
    write_proposals(chain.proposals, dataset)
    found = read_proposals(chain.proposals)
    seen: dict[str, Any] = {"boxes": mirror(found.boxes, SIZE[1]), "scores": found.scores}
    seen |= {"image_ids": other.image_ids, "sizes": other.sizes, "counts": np.diff(found.offsets)}
    make_proposals(chain.turned.proposals, **seen)
    write(chain.fast, dataset, detector_of())
    write(chain.faster, dataset, detector_of(parts=rpn_parts))
    random = torch.Generator().manual_seed(1)
    network = create_network("demo", 3, random)
    write(chain.windows, dataset, network)
    head = PyramidHead("conv5", 32, Pyramid((1, 2)), MapView((72, 100), 56))
    write(chain.pyramid, dataset, put_on_pyramid(network, head, random))
    write_linear(chain)
    return chain


def rpn_parts(network: Network, **changed: Any) -> Parts:
    return replace(faster.parts_of(network, VIEW, anchor_sizes=(20, 40)), **changed)


def write(path: Path, dataset: Dataset, network: Network | Detector) -> None:
    header = make_header(
        *("model",), stage="made", version=1, settings={}, inputs={"data": dataset}, classes=CLASSES
    )
    write_model(path, header, network.settings(), network.tensors())


def write_linear(chain: Chain) -> None:
    """An SVM and a box regression of the windows' network, drawn."""
    random, inputs = np.random.default_rng(0), {"model": open_header(chain.windows)}
    made: dict[str, Any] = {"stage": "made", "version": 1, "settings": {}, "inputs": inputs}
    write_svm(
        chain.svm,
        make_header("svm", **made, classes=CLASSES),
        layer="fc7",
        scale=1.0,
        weights=random.normal(size=(2, 256)).astype(np.float32),
        bias=np.zeros(2, np.float32),
        report={},
    )
    write_bbox_reg(
        chain.bbox_reg,
        make_header("bbox-reg", **made, classes=CLASSES),
        layer="pool5",
        scale=1.0,
        pixel=1.0,
        weights=random.normal(0, 0.01, (2, 864, 4)).astype(np.float32),
        bias=random.normal(0, 0.1, (2, 4)).astype(np.float32),
        mean=np.zeros((2, 4)),
        whitening=np.tile(np.eye(4), (2, 1, 1)),
        report={},
    )


Columns = Mapping[str, np.ndarray[Any, Any]]


def by_class(parts: list[Columns], most: int | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Candidates of an image put together: by class, then falling score, the best of each."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows: list[int] = []
    for label in (1, 2):
        own = np.flatnonzero(columns["labels"] == label)
        rows += own[np.argsort(-columns["scores"][own], kind="stable")][:most].tolist()
    return {name: column[rows] for name, column in columns.items()}


def columns_of(found: Detections, image: int, turned: bool = False) -> Columns:
    rows = rows_of(found.offsets, image)
    boxes = mirror(found.boxes[rows], SIZE[1]) if turned else found.boxes[rows]
    return {"boxes": boxes, "scores": found.scores[rows], "labels": found.labels[rows]}


def assert_equal(found: Columns, expected: Columns) -> None:
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-4)


@pytest.mark.parametrize("kind", ["fast", "faster", "windows", "pyramid"])
def test_mirrored_images_are_looked_at_too(kind: str, chain: Chain, tmp_path: Path) -> None:
    plain = chain.candidates(kind, tmp_path / "plain.h5")
    turned = chain.candidates(kind, tmp_path / "turned.h5", turned=True)
    both = chain.candidates(kind, tmp_path / "both.h5", "--flip")
    few = chain.candidates(kind, tmp_path / "few.h5", "--flip", "--max-per-image", 3)
    assert both.header.settings["flip"] is True
    assert "flip" not in plain.header.settings
    for image in range(IMAGES):
        views = [columns_of(plain, image), columns_of(turned, image, turned=True)]
        assert not np.allclose(views[0]["scores"], views[1]["scores"][: len(views[0]["scores"])])
        assert_equal(columns_of(both, image), by_class(views))
        assert_equal(columns_of(few, image), by_class(views, 3))  # of both together


def test_mirrored_images_by_svms_that_suppress_first(chain: Chain, tmp_path: Path) -> None:
    more = ("--svm", chain.svm, "--suppress-first", "--nms-overlap", 0.2)
    both = chain.candidates("windows", tmp_path / "both.h5", "--flip", *more, "--no-refine")
    all_of_them = ("--flip", "--svm", chain.svm, "--no-refine")
    every = chain.candidates("windows", tmp_path / "every.h5", *all_of_them)
    for image in range(IMAGES):
        columns = columns_of(every, image)
        kept = sorted(slow.suppress(columns["boxes"], columns["scores"], columns["labels"], 0.2))
        assert_equal(columns_of(both, image), {x: column[kept] for x, column in columns.items()})


def test_a_network_that_finds_regions_looks_at_every_scale_given(
    chain: Chain, tmp_path: Path
) -> None:
    alone = [
        chain.candidates("faster", tmp_path / f"{scale}.h5", "--scales", scale)
        for scale in (60, 90)
    ]
    both = chain.candidates("faster", tmp_path / "both.h5", "--scales", "60,90")
    assert not np.array_equal(alone[0].boxes, alone[1].boxes)
    for image in range(IMAGES):
        views = [columns_of(one, image) for one in alone]
        assert_equal(columns_of(both, image), by_class(views))
    flipped = chain.candidates("faster", tmp_path / "flipped.h5", "--scales", "60,90", "--flip")
    assert len(flipped.boxes) > 1.5 * len(both.boxes)


def test_of_its_own_scales_it_looks_at_the_first(chain: Chain, tmp_path: Path) -> None:
    several = detector_of(parts=rpn_parts, view=ImageView((60, 90), 150))
    write(tmp_path / "m.h5", open_dataset(chain.data[0], "train"), several)
    for name, more in (("own", ()), ("first", ("--scales", 60))):
        chain.detect(tmp_path / f"{name}.h5", "--model", tmp_path / "m.h5", *ALL, *more)
    own, first = (read_candidates(tmp_path / f"{name}.h5") for name in ("own", "first"))
    np.testing.assert_array_equal(own.boxes, first.boxes)


def test_proposals_of_several_scales_are_suppressed_together(chain: Chain, tmp_path: Path) -> None:
    words = ("propose", *chain.data, "--method", "rpn", "--model", chain.faster, *ON_CPU)
    found = []
    for name, more in (("60", ()), ("90", ()), ("60,90", ()), ("60,90", ("--max-boxes", 9))):
        run(*words, "--scales", name, *more, "--out", tmp_path / "p.h5")
        found.append(read_proposals(tmp_path / "p.h5"))
    for image in range(IMAGES):
        views = [(one, rows_of(one.offsets, image)) for one in found]
        boxes = np.concatenate([one.boxes[rows] for one, rows in views[:2]])
        scores = np.concatenate([one.scores[rows] for one, rows in views[:2]])
        kept = slow.suppress(boxes, scores, np.zeros(len(boxes)), 0.7)
        for (both, rows), best in zip(views[2:], (kept, kept[:9]), strict=True):
            np.testing.assert_array_equal(both.boxes[rows], boxes[best])
            np.testing.assert_array_equal(both.scores[rows], scores[best])


SOFT: dict[str, tuple[tuple[object, ...], dict[str, Any]]] = {
    "linear": ((), {"overlap": 0.3, "sigma": 0.5, "floor": 0.001}),
    "linear at an overlap": (
        ("--nms-overlap", 0.1, "--soft-floor", 0.05),
        {"overlap": 0.1, "sigma": 0.5, "floor": 0.05},
    ),
    "gaussian": ((), {"overlap": 0.3, "sigma": 0.5, "floor": 0.001}),
    "gaussian of another width": (
        ("--sigma", 0.2, "--soft-floor", 0),
        {"overlap": 0.3, "sigma": 0.2, "floor": 0},
    ),
}


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("name", SOFT)
def test_soft_suppression_of_kept_candidates(
    name: str, agnostic: bool, chain: Chain, tmp_path: Path
) -> None:
    (words, rules), kind = SOFT[name], name.split()[0]
    more = ("--suppression", kind, *words, *(["--class-agnostic"] if agnostic else []))
    kept, anew, direct = (tmp_path / f"{name}.h5" for name in ("kept", "anew", "direct"))
    candidates = chain.candidates("fast", kept)
    chain.detect(anew, "--candidates", kept, "--max-per-set", 0, *more)
    pixels = (*chain.kinds["fast"], "--proposals", chain.proposals)
    chain.detect(direct, *pixels, *ALL, *more)
    found, same = read_detections(anew), read_detections(direct)
    for image in range(IMAGES):
        columns = columns_of(candidates, image)
        rivals = np.ones_like(columns["labels"]) if agnostic else columns["labels"]
        expected = slow.soften(columns["boxes"], columns["scores"], rivals, kind, **rules)
        rows = [row for row, _ in expected]
        left = {x: column[rows] for x, column in columns.items()}
        left["scores"] = np.array([score for _, score in expected])
        assert_equal(columns_of(found, image), left)
    for column in ("boxes", "scores", "labels", "offsets"):
        np.testing.assert_array_equal(getattr(found, column), getattr(same, column))
    np.testing.assert_array_equal(read_candidates(direct).scores, candidates.scores)


def test_only_options_in_use_are_recorded(chain: Chain, tmp_path: Path) -> None:
    kept = tmp_path / "kept.h5"
    assert not chain.candidates("fast", kept).header.settings.keys() & NEW

    def settings(*more: object) -> dict[str, Any]:
        chain.detect(tmp_path / "d.h5", "--candidates", kept, *more)
        return open_header(tmp_path / "d.h5").settings

    plain = settings()
    assert not plain.keys() & NEW
    assert settings("--suppression", "greedy") == plain
    assert settings("--class-agnostic") == plain | {"class-agnostic": True}
    linear = {"suppression": "linear", "soft-floor": 0.001}
    assert settings("--suppression", "linear") == plain | linear
    gaussian = {"suppression": "gaussian", "soft-floor": 0.001, "sigma": 0.5}
    del plain["nms-overlap"]
    assert settings("--suppression", "gaussian") == plain | gaussian


def test_margins_are_not_softened(chain: Chain, tmp_path: Path) -> None:
    out, margins = tmp_path / "d.h5", tmp_path / "margins.h5"
    chain.candidates("windows", margins, "--svm", chain.svm, "--score-threshold", 0)
    assert (read_candidates(margins).scores > 0).all()  # it is told by its origin
    pixels = (*chain.kinds["windows"], "--svm", chain.svm, "--proposals", chain.proposals)
    for kind in ("linear", "gaussian"):
        soft = ("--suppression", kind)
        told = sentence(chain.detect(out, *pixels, *soft, fails=True))
        assert f"--suppression {kind} lowers probabilities, which margins of an SVM are not" in told
        told = sentence(chain.detect(out, "--candidates", margins, *soft, fails=True))
        assert f"{margins} holds margins of an SVM" in told
    assert not out.exists()
    chain.detect(out, "--candidates", margins)  # greedily
