"""``rcnnpipe export --format onnx``: what onnxruntime makes of the file is what detect finds."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.model import write_model
from tests import artifacts_made as made
from tests.detectors_made import detector_of
from tests.export.test_onnx import image, of_faster
from tests.stages.made import ON_CPU, run, sentence

OPTIONS = ("--score-threshold", 0.1, "--nms-overlap", 0.5, "--max-per-image", 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("onnx")
    detector = detector_of("demo", parts=of_faster)
    write_model(root / "m.h5", made.header("model"), detector.settings(), detector.tensors())
    Image.fromarray(image((75, 110))).save(root / "a.png")
    (root / "none").mkdir()
    made.make_detections(root / "d.h5")
    made.make_model(root / "plain.h5")
    return root


def test_detections_are_those_of_detect(folder: Path) -> None:
    out, onnx = folder / "found.h5", folder / "new/m.onnx"
    words = (*OPTIONS, "--max-detections", 40)
    verify = ("--verify", folder / "a.png")
    result = run("export", folder / "m.h5", "--format", "onnx", *words, *verify, "--out", onnx)
    assert result.stdout == ""
    assert "detections in 1 images, boxes within" in result.stderr
    detect = ("detect", folder / "a.png", "--model", folder / "m.h5", *words, "--max-per-set", 0)
    run(*detect, *ON_CPU, "--out", out)
    expected = read_detections(out)
    # No code of ours from here on.
    pixels = np.asarray(Image.open(folder / "a.png"), np.float32).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(onnx)
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"image": pixels})
    assert len(boxes) > 5
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(labels, expected.labels)


def test_drawn_images_and_a_scale(folder: Path) -> None:
    words = ("--score-threshold", 0, "--scales", 90)
    result = run(
        *("export", folder / "m.h5", "--format", "onnx", *words, "--out", folder / "s.onnx")
    )
    assert "detections in 3 images" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("d.h5", "--format", "onnx"), "is needed here"),
        (("plain.h5", "--format", "onnx"), "is for detectors"),
        (("m.h5", "--format", "onnx", "--verify", "none"), "none is not VOC, COCO"),
        (("m.h5", "--format", "onnx", "--verify", "gone"), "there is no data set"),
        (("m.h5", "--format", "onnx", "--score-threshold", "1"), "nothing was detected"),
        (("m.h5", "--format", "onnx", "--scales", "60,90"), "at one scale"),
        (("m.h5", "--format", "onnx", "--digits", "3"), "--digits has no meaning"),
        (("m.h5", "--format", "safetensors", "--verify", "a.png"), "--verify has no meaning but"),
        (("m.h5", "--format", "safetensors", "--nms-overlap", "0.4"), "--nms-overlap has no"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, words: tuple[str, ...], told: str) -> None:
    names = {"d.h5", "plain.h5", "m.h5", "none", "gone", "a.png"}
    places = [folder / word if word in names else word for word in words]
    result = run("export", *places, "--out", folder / "never.onnx", fails=True)
    assert result.exit_code == 1
    assert told in sentence(result)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(folder.glob("never*"))
