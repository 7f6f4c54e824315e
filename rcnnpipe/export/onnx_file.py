"""A detector as an ONNX file, which is only written once it finds what the network finds.

Vocabulary: H x W pixels, R regions, D detections.
"""

import copy
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.jit._trace import TracerWarning

from rcnnpipe.artifacts.model import Model
from rcnnpipe.datasets.outlines import SHAPES
from rcnnpipe.datasets.scenes import draw_scene
from rcnnpipe.errors import SettingError, one_line
from rcnnpipe.export.agreement import Agreement, Pixels, compare, detected, some_regions
from rcnnpipe.export.graph import DetectionGraph, DetectionRules
from rcnnpipe.models.detector import Detector, build_detector
from rcnnpipe.models.folding import fold_batch_norm
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.randomness import generator
from rcnnpipe.report.files import whole_file

OPSET = 17
INPUTS, OUTPUTS = ("image", "proposals"), ("boxes", "scores", "labels")
_AXES = {
    "image": {2: "height", 3: "width"},
    "proposals": {0: "regions"},
    "boxes": {0: "detections"},
    "scores": {0: "detections"},
    "labels": {0: "detections"},
}
_DRAWN = 3  # images


def write_onnx(
    path: Path,
    model: Model,
    rules: DetectionRules,
    scales: tuple[int, ...] | None = None,
    images: Iterable[Pixels] | None = None,
) -> Agreement:
    """Write a detector as a graph from pixels to detections.

    Its inputs are ``image`` (1, 3, H, W) float32 RGB 0..255 and, where it has no RPN, ``proposals``
    (R, 4) float32; its outputs ``boxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), the best
    first. The metadata's one entry, ``rcnnpipe``, is JSON of the classes, rules and id.

    Args:
        path: of the file.
        model: of a detector.
        rules: which candidates become detections.
        scales: of the image, other than the model's own.
        images: pixels (H, W, 3) to compare on; None draws some.

    Returns:
        How far the graph and the network are apart.

    Raises:
        SettingError: the model is no detector, a package is not installed, or the graph does not
            find what the network finds.
    """
    onnx, _ = _packages()
    detector = _detector_of(model)
    view = detector.parts.view.at(scales)
    graph = onnx.load_from_string(graph_of(detector, view, rules))
    about = {"classes": model.header.classes, "rules": vars(rules), "id": model.header.id}
    onnx.helper.set_model_props(graph, {"rcnnpipe": json.dumps(about, sort_keys=True)})
    content = graph.SerializeToString(deterministic=True)
    with torch.inference_mode():
        agreement = compare(
            drawn_images() if images is None else images,
            partial(detected, detector, view, rules),
            Runtime(content),
        )
    agreement.require()
    with whole_file(path) as place:
        place.write_bytes(content)
    return agreement


def graph_of(detector: Detector, view: ImageView, rules: DetectionRules) -> bytes:
    """The bytes of an ONNX file.

    Args:
        detector: in evaluation mode on the CPU, as it will run.
        view: how images become its input.
        rules: which candidates become detections.
    """
    graph = DetectionGraph(copy.deepcopy(detector).eval(), view, rules)
    size = (64, 96)
    example: list[torch.Tensor] = [torch.full((1, 3, *size), 128.0)]
    if detector.rpn is None:
        example.append(torch.from_numpy(some_regions(size)))
    inputs, file = INPUTS[: len(example)], io.BytesIO()
    place: Any = file  # which the older exporter takes, other than its types say
    with warnings.catch_warnings(), torch.no_grad():
        # The traced sizes that Python sees are those of one image or of constants; the newer
        # exporter, which the deprecation advertises, cannot follow sizes through the resizing.
        warnings.simplefilter("ignore", TracerWarning)
        for category, words in (
            (DeprecationWarning, "You are using the legacy TorchScript-based"),
            (DeprecationWarning, "The feature will be removed"),
            (UserWarning, "Constant folding"),
            (UserWarning, "Exporting aten::index operator"),
        ):
            warnings.filterwarnings("ignore", words, category)
        torch.onnx.export(
            graph,
            tuple(example),
            place,
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=OUTPUTS,
            dynamic_axes={name: _AXES[name] for name in (*inputs, *OUTPUTS)},
            autograd_inlining=False,
        )
    return file.getvalue()


class Runtime:
    """A graph that onnxruntime runs on the CPU."""

    def __init__(self, content: bytes) -> None:
        """Read an ONNX file's bytes."""
        _, onnxruntime = _packages()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self.inputs: Sequence[str] = [one.name for one in self.session.get_inputs()]

    def __call__(self, pixels: Pixels) -> dict[str, np.ndarray[Any, Any]]:
        """Detections of an image (H, W, 3), in sliding windows where the graph takes regions."""
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
        given = {"image": image, "proposals": some_regions((pixels.shape[0], pixels.shape[1]))}
        try:
            found = self.session.run(list(OUTPUTS), {name: given[name] for name in self.inputs})
        except Exception as error:  # the package's own kinds have no common one
            raise SettingError(
                f"onnxruntime cannot run the graph ({one_line(error)[:200]}), so no file was "
                "written"
            ) from None
        return dict(zip(OUTPUTS, found, strict=True))


def drawn_images() -> Iterator[Pixels]:
    """A few drawn scenes of several sizes."""
    for number in range(_DRAWN):
        yield draw_scene(SHAPES, generator(0, "export", number)).pixels


def _detector_of(model: Model) -> Detector:
    if "detector" not in model.architecture:
        raise SettingError(
            "--format onnx is for detectors, which look at whole images; this model is a network "
            "of windows, which goes by --format safetensors"
        )
    detector = build_detector(model.architecture, model.tensors)
    if not detector.outputs_learnt:
        raise SettingError(
            "--format onnx is for detectors; this model has learnt to propose regions alone"
        )
    fold_batch_norm(detector)
    return detector


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise SettingError(
            "an ONNX file needs two more packages, which it is made and verified with; run "
            "pip install 'rcnnpipe[onnx]'"
        ) from None
    return onnx, onnxruntime
