"""Features of regions by a detector, against one region after another; scales, what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnnpipe.errors import SettingError
from rcnnpipe.extraction.choice import extractor_for
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions, extract, mirrored
from rcnnpipe.images import read_image
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import ImageView
from tests.detectors_made import VIEW, detector_of, neck_parts
from tests.extraction.test_maps import (
    SIZE,
    Pixels,
    boxes_of,
    pixels_of,
    regions_of,
    resized,
)
from tests.reference import region_pooling as slow
from tests.training.made import draw_records, propose_near

CPU = torch.device("cpu")
WINDOW = 56  # the demo's: what is 224 to larger networks
LAYERS = ("pool5", "fc6", "fc7", "logits", "deltas")
OPTIONS: dict[str, Any] = {"precision": "fp32", "batch_size": 256}


def extractor_of(
    detector: Detector | None = None,
    layers: Sequence[str] = LAYERS,
    view: ImageView = VIEW,
    **settings: Any,
) -> DetectorExtractor:
    detector = detector or detector_of()
    return DetectorExtractor(detector, layers, CPU, view, **({"stored": False} | settings))


def slow_scale(size: tuple[int, int], shorter: int, longest: int) -> float:
    """The sheet, section 3: min(h, w) to ``shorter``, unless max(h, w) would be too long."""
    scale = shorter / min(size)
    return longest / max(size) if round(scale * max(size)) > longest else scale


def slow_features(
    detector: Detector, view: ImageView, image: Pixels, box: Sequence[float]
) -> dict[str, Tensor]:
    """Layers of one region alone, by the parts of the network and loops over cells."""
    size = image.shape[:2]
    area = (box[2] - box[0]) * (box[3] - box[1])
    scales = [slow_scale((size[0], size[1]), shorter, view.longest) for shorter in view.scales]
    scale = min(scales, key=lambda one: abs(one**2 * area - WINDOW**2))  # section 3, multi-scale
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (resized(image, *(round(side * scale) for side in size)) / 255 - mean) / std
    value = torch.from_numpy(pixels).float().permute(2, 0, 1)[None]
    parts = detector.network.get_submodule
    for part in "conv1 relu pool conv2 relu pool conv3 relu conv4 relu conv5 relu".split():
        value = parts(part)(value)
    roi = [(edge - shift) * scale for edge, shift in zip(box, (0, 0, 1, 1), strict=True)]
    pooled, _ = slow.pool(value[0].numpy(), roi, 8, 3)
    found = {"pool5": torch.from_numpy(pooled).float().flatten()}
    found["fc6"] = parts("fc6")(found["pool5"]).relu()
    found["fc7"] = parts("fc7")(found["fc6"]).relu()
    found["logits"] = detector.class_scores(found["fc7"])
    deltas = detector.box_deltas(found["fc7"])
    found["deltas"] = deltas * detector.deltas_std.flatten() + detector.deltas_mean.flatten()
    return found


VIEWS = {
    "as it is": VIEW,
    "larger": ImageView((100,), 200),
    "too long": ImageView((100,), 101),
    "several": ImageView((30, 60, 110), 200),
    "several, falling": ImageView((110, 60), 200),
    "several, one too long": ImageView((72, 150), 150),
}


@pytest.mark.parametrize("name", VIEWS)
@torch.no_grad()
def test_features_equal_those_of_one_region_after_another(name: str) -> None:
    detector, image, view = detector_of(), pixels_of(), VIEWS[name]
    # The last one is nearer to the window at 150 / 96 than as it is, but not at 150 / 72.
    boxes = np.concatenate((boxes_of(12), np.array([(10, 10, 48, 50)], np.float32)))
    found = extractor_of(detector, view=view)(image, regions_of(boxes))
    assert list(found) == list(LAYERS)
    for number, box in enumerate(boxes.tolist()):
        expected = slow_features(detector, view, image, box)
        for layer, values in expected.items():
            assert found[layer].dtype == torch.float32
            torch.testing.assert_close(found[layer][number], values, rtol=1e-4, atol=1e-4)


def test_each_region_takes_the_scale_that_makes_it_nearest_to_a_window() -> None:
    # Of 72 x 96 pixels: squares of 28 and 112 become 56 at scales of 2 and a half.
    boxes = np.array([(0, 0, 28, 28), (0, 0, 56, 56), (0, 0, 96, 72)], np.float32)
    view = ImageView((36, 72, 144), 200)
    detector, image = detector_of(), pixels_of()
    found = extractor_of(detector, ("pool5",), view)(image, regions_of(boxes))["pool5"]
    alone = [
        extractor_of(detector, ("pool5",), replace(view, scales=(scale,)))(
            image, regions_of(boxes)
        )["pool5"]
        for scale in view.scales
    ]
    for number, scale in enumerate((2, 1, 0)):
        assert torch.equal(found[number], alone[scale][number])
    # The whole image, 83 pixels wide on average, is nearer to 56 at a half than as it is.
    assert abs(0.25 * 96 * 72 - 56**2) < abs(96 * 72 - 56**2)


@pytest.mark.parametrize("parts", ["cut", "neck"])
@pytest.mark.parametrize("stored", [True, False])
def test_the_size_of_batches_does_not_matter(parts: str, stored: bool) -> None:
    detector = detector_of() if parts == "cut" else detector_of(parts=neck_parts)
    image, todo = pixels_of(), regions_of()
    view = ImageView((48, 90), 200)
    whole = extractor_of(detector, view=view, stored=stored)(image, todo)
    tolerance = 2e-3 if stored else 1e-4  # 16 bits or 32
    for size in (1, 7, 25):
        few = extractor_of(detector, view=view, stored=stored, batch_size=size)(image, todo)
        assert few.keys() == whole.keys()
        for layer, values in whole.items():
            # Products of few rows and of many may round otherwise.
            torch.testing.assert_close(few[layer], values, rtol=tolerance, atol=tolerance)


def test_stored_features_are_the_same_in_16_bits() -> None:
    detector, image = detector_of(), pixels_of()
    exact = extractor_of(detector)(image, regions_of())
    stored = extractor_of(detector, stored=True)(image, regions_of())
    for layer, values in exact.items():
        assert stored[layer].dtype == torch.float16
        assert torch.equal(stored[layer], values.half())
    with torch.no_grad():
        detector.class_scores.bias.fill_(1e6)  # beyond what 16 bits hold
    stored = extractor_of(detector, ("logits",), stored=True)(image, regions_of())
    assert (stored["logits"] == 65504).all()


@pytest.mark.parametrize("parts", ["cut", "neck"])
@pytest.mark.parametrize("stored", [True, False])
def test_an_image_without_regions(parts: str, stored: bool) -> None:
    detector = detector_of() if parts == "cut" else detector_of(parts=neck_parts)
    nothing = np.empty((0, 4), np.float32)
    found = extractor_of(detector, stored=stored)(pixels_of(), regions_of(nothing))
    sizes = {layer: tuple(values.shape) for layer, values in found.items()}
    assert sizes == {layer: (0, size) for layer, size in detector.layer_sizes.items()}
    kind = torch.float16 if stored else torch.float32
    assert {values.dtype for values in found.values()} == {kind}


def test_layers_are_given_alone_and_in_the_order_asked_for() -> None:
    detector, image = detector_of(), pixels_of()
    whole = extractor_of(detector)(image, regions_of())
    for layers in (("deltas",), ("logits", "pool5"), ("fc6",)):
        found = extractor_of(detector, layers)(image, regions_of())
        assert list(found) == list(layers)
        for layer in layers:
            assert torch.equal(found[layer], whole[layer])


def test_mixed_precision_is_near() -> None:
    detector, image = detector_of(), pixels_of()
    exact = extractor_of(detector)(image, regions_of())
    mixed = extractor_of(detector, precision="bf16")(image, regions_of())
    for layer, values in exact.items():
        assert mixed[layer].dtype == torch.float32
        error = (mixed[layer] - values).abs().mean() / values.abs().mean()
        assert error < 0.05, layer


def test_mirrored_images_are_seen_mirrored(tmp_path: Path) -> None:
    (record,) = draw_records(tmp_path, 1)
    todo = Regions(record, propose_near(record))
    extractor = extractor_of(layers=("pool5", "logits"))
    both = list(extract(extractor, [todo, mirrored(todo)], 1))
    image = np.ascontiguousarray(read_image(record.path)[:, ::-1])
    boxes = todo.boxes
    seen = np.stack((96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]), axis=1)
    expected = extractor(image, regions_of(seen))
    np.testing.assert_allclose(both[1][1]["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    assert not np.allclose(both[0][1]["logits"], both[1][1]["logits"], rtol=1e-3)


def test_options_of_the_stage() -> None:
    detector, image = detector_of(), pixels_of()
    usual = extractor_for(detector, LAYERS, CPU, OPTIONS)
    assert isinstance(usual, DetectorExtractor)
    assert (usual.view, usual.stored, usual.batch_size) == (VIEW, True, 256)
    exact = extractor_for(detector, LAYERS, CPU, OPTIONS | {"scales": None}, stored=False)
    assert exact(image, regions_of())["logits"].dtype == torch.float32
    other = extractor_for(detector, LAYERS, CPU, OPTIONS | {"scales": (36, 144)})
    assert isinstance(other, DetectorExtractor)
    assert other.view == ImageView((36, 144), 240)  # the longest side in proportion
    for wrong in ({"random_scales": True}, {"random_scales": True, "scales": (48,)}):
        with pytest.raises(SettingError, match="--random-scales is for networks with a pyramid"):
            extractor_for(detector, LAYERS, CPU, OPTIONS | wrong)


def test_images_that_are_too_large_are_told() -> None:
    large = extractor_of(view=ImageView((10**8,), 10**9))
    with pytest.raises(SettingError, match="does not fit into the memory; lower --scales"):
        large(pixels_of(), regions_of())


def test_a_lack_of_memory_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(self: Detector, images: Tensor) -> list[Tensor]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(Detector, "maps", without_memory)
    told = f"image 'image', scaled to {SIZE[1]} x {SIZE[0]} pixels, does not fit"
    with pytest.raises(SettingError, match=told):
        extractor_of()(pixels_of(), regions_of())
