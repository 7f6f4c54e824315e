"""A detector's parts: every network's cut, what is pooled, what is kept, what is stored and not."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.detector import Detector, build_detector
from rcnnpipe.models.folding import fold_batch_norm
from rcnnpipe.models.fpn import Neck
from rcnnpipe.models.parts import Parts, build_parts
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.projection import geometry_of
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.models.region_cut import _CUTS, Cut, dropout_of, usual_cut
from rcnnpipe.models.region_pooling import RegionPooling
from rcnnpipe.models.without_values import without_values
from rcnnpipe.systems import fast, faster, fpn
from tests.detectors_made import NECK, VIEW, detector_of, fast_parts, neck_parts

# Network -> stride of the map, dropout before the outputs, layers of a region with their sizes
EXPECTED: dict[str, tuple[int, float, dict[str, int]]] = {
    "alexnet": (16, 0, {"pool5": 9216, "fc6": 4096, "fc7": 4096}),
    "caffenet": (16, 0.5, {"pool5": 9216, "fc6": 4096, "fc7": 4096}),
    "demo": (8, 0.2, {"pool5": 864, "fc6": 256, "fc7": 256}),
    "vgg16": (16, 0.5, {"pool5": 25088, "fc6": 4096, "fc7": 4096}),
    "zf5": (16, 0.5, {"pool5": 9216, "fc6": 4096, "fc7": 4096}),
    "squeezenet": (16, 0.5, {"pool5": 25088, "fire9": 25088, "avgpool": 512}),
    "mobilenet_v3_large": (
        *(16, 0.2),
        {"pool5": 21952, **dict.fromkeys(("block13", "block14", "block15"), 7840), "conv2": 47040}
        | {"avgpool": 960, "fc6": 1280},
    ),
    "resnet18": (16, 0, {"pool5": 50176, "layer4": 25088, "avgpool": 512}),
    "resnet50": (16, 0, {"pool5": 200704, "layer4": 100352, "avgpool": 2048}),
    "resnet101": (16, 0, {"pool5": 200704, "layer4": 100352, "avgpool": 2048}),
}
WHOLE = (1.0, 1.0)  # an image that is not resized
BOXES = torch.tensor(
    [(0, 0, 96, 72), (3.5, 7, 60, 41), (0, 0, 1, 1), (95, 71, 96, 72), (20, 30, 50, 60.25)]
)


def images_of(count: int = 2, size: tuple[int, int] = (72, 96), seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *size, generator=random)


def outputs_of(detector: Detector, layers: Any = None) -> dict[str, Tensor]:
    with torch.inference_mode():
        maps = detector.maps(images_of())
        pooled = detector.pool(maps, [BOXES, BOXES[1:3]], [WHOLE, (0.8, 0.8)])
        return detector.behind(pooled, layers or detector.layer_names)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name, values in first.items():
        assert torch.equal(values, second[name]), name


def test_every_network_has_a_cut() -> None:
    assert EXPECTED.keys() == _CUTS.keys()
    with pytest.raises(SettingError, match="there is no network 'lenet'; there are alexnet"):
        usual_cut("lenet")


@pytest.mark.parametrize("name", EXPECTED)
def test_every_network_becomes_a_detector(name: str) -> None:
    stride, dropout, sizes = EXPECTED[name]
    network = create_network(name, 1000)
    frozen = set(network.state_dict())
    usual = fast.parts_of(network)
    assert usual.pooling.strides == (stride,)
    scales, longest = ((150,), 250) if name == "demo" else ((600,), 1000)
    assert (usual.view.scales, usual.view.longest) == (scales, longest)
    detector = Detector(network, usual, 21)
    assert detector.layer_sizes == sizes | {"logits": 21, "deltas": 84}
    assert detector.layer_names == (*sizes, "logits", "deltas")
    assert detector.map_layers == (_CUTS[name].map,)
    found = getattr(detector.dropout, "p", 0)
    assert found == dropout
    # Nothing but the classifier has gone.
    gone = frozen - {key.removeprefix("network.") for key in detector.state_dict()}
    classifier = network.architecture.classifier
    assert gone == {f"{classifier}.weight", f"{classifier}.bias"}
    assert fast.TRAIN_FROM[name] in network.layer_names


def test_the_weights_of_the_network_are_kept() -> None:
    network = create_network("demo", 10, torch.Generator().manual_seed(4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    detector = Detector(network, fast_parts(network), 3)
    detector.initialise(torch.Generator().manual_seed(5))
    held = detector.state_dict()
    for name, value in before.items():
        if name.startswith("fc8"):
            assert f"network.{name}" not in held
        else:
            assert torch.equal(held[f"network.{name}"], value), name
    assert {name for name in held if not name.startswith("network.")} == {
        *("class_scores.weight", "class_scores.bias", "box_deltas.weight", "box_deltas.bias"),
        *("deltas_mean", "deltas_std"),
    }
    # Section 2.3: standard deviations .01 and .001, biases 0
    assert held["class_scores.weight"].shape == (3, 256)
    assert held["box_deltas.weight"].shape == (12, 256)
    assert float(held["class_scores.weight"].std()) == pytest.approx(0.01, rel=0.1)
    assert float(held["box_deltas.weight"].std()) == pytest.approx(0.001, rel=0.1)
    assert not held["class_scores.bias"].any()
    assert not held["box_deltas.bias"].any()
    assert not held["deltas_mean"].any()
    assert (held["deltas_std"] == 1).all()


def test_first_values_are_the_generators() -> None:
    for parts in (fast_parts, neck_parts):
        one, same_seed, other = (
            detector_of(parts=parts, seed=n, loud=False).state_dict() for n in (1, 1, 2)
        )
        assert all(torch.equal(value, same_seed[name]) for name, value in one.items())
        drawn = [name for name, value in one.items() if value.any() and name != "deltas_std"]
        assert "class_scores.weight" in drawn
        assert not any(torch.equal(one[name], other[name]) for name in drawn)
        assert all(bool(torch.isfinite(value).all()) for value in one.values())


def test_the_head_of_a_neck_begins_as_detectrons() -> None:
    detector = detector_of(parts=neck_parts, loud=False)
    for layer in (detector.fc6, detector.fc7):
        bound = (3 / layer.in_features) ** 0.5  # Caffe2's XavierFill
        assert 0.97 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("name", "window", "box", "layers"),
    [
        # Bins of 14 x 14 cells into 7 x 7 are those of a maximum over 2 cells at a stride of 2.
        ("vgg16", 224, (0, 0, 209, 209), {"pool5": "pool5", "fc6": "fc6", "fc7": "fc7"}),
        # 14 x 14 cells into as many bins are the map itself.
        ("resnet18", 224, (0, 0, 209, 209), {"pool5": "layer3", "avgpool": "avgpool"}),
    ],
)
def test_a_region_that_is_the_whole_window_has_the_windows_features(
    name: str, window: int, box: Any, layers: dict[str, str]
) -> None:
    network = create_network(name, 5, torch.Generator().manual_seed(0))
    image = images_of(1, (window, window))
    with torch.inference_mode():
        expected = network(image, tuple(layers.values()))
        detector = Detector(network, fast_parts(network), 3).eval()
        maps = detector.maps(image)
        pooled = detector.pool(maps, [torch.tensor([box]).float()], [WHOLE])
        found = detector.behind(pooled, tuple(layers))
    for own, of_window in layers.items():
        torch.testing.assert_close(found[own], expected[of_window], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_outputs_are_linear_in_the_last_layer() -> None:
    detector = detector_of()
    found = outputs_of(detector)
    assert found.keys() == detector.layer_sizes.keys()
    for name, size in detector.layer_sizes.items():
        assert found[name][0].numel() == size
    for output, name in ((detector.class_scores, "logits"), (detector.box_deltas, "deltas")):
        expected = found["fc7"] @ output.weight.T + output.bias
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)
    # Of fewer layers the same is given, in the order asked for.
    for layers in (("deltas", "fc6"), ("logits",), ("pool5",), ("fc7", "pool5", "logits")):
        few = outputs_of(detector, layers)
        same(few, {name: found[name] for name in layers})


def test_deltas_move_by_what_normalised_them() -> None:
    detector = detector_of()
    deltas = outputs_of(detector)["deltas"]
    scaled = detector.scaled_deltas(deltas)
    assert scaled.shape == (7, 3, 4)
    for label in range(3):
        for column in range(4):
            mean, deviation = (
                detector.deltas_mean[label, column],
                detector.deltas_std[label, column],
            )
            expected = deltas[:, 4 * label + column] * deviation + mean
            torch.testing.assert_close(scaled[:, label, column], expected)
    assert detector.scaled_deltas(deltas[:0]).shape == (0, 3, 4)


@pytest.mark.parametrize("kind", ["pool", "align"])
@pytest.mark.parametrize(
    "factors", [(WHOLE, WHOLE), ((1.6, 1.6), (0.37, 0.37)), ((1.5, 0.7), WHOLE)]
)
def test_pooling_is_torchvisions_of_shifted_boxes(kind: str, factors: Any) -> None:
    detector = detector_of(pooling=RegionPooling(kind, 3, strides=(8,)))
    maps = [torch.randn(2, 96, 14, 18, generator=torch.Generator().manual_seed(0))]
    boxes = [BOXES, BOXES[:0], BOXES[2:]]
    maps = [torch.cat((maps[0], maps[0][:1]))]
    all_factors = [factors[0], WHOLE, factors[1]]
    found = detector.pool(maps, boxes, all_factors)
    rows = []
    for image, (own, (x, y)) in enumerate(zip(boxes, all_factors, strict=True)):
        for x1, y1, x2, y2 in own.tolist():
            shift = 1 if kind == "pool" else 0  # inclusive corners
            rows.append([image, x1 * x, y1 * y, (x2 - shift) * x, (y2 - shift) * y])
    rois = torch.tensor(rows)
    if kind == "pool":
        expected = roi_pool(maps[0], rois, 3, 1 / 8)
    else:
        expected = roi_align(maps[0], rois, 3, 1 / 8, 2, aligned=False)
    assert found.shape == (8, 96, 3, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_regions_pass() -> None:
    for parts in (fast_parts, neck_parts):
        detector = detector_of(parts=parts)
        maps = detector.maps(images_of())
        pooled = detector.pool(maps, [BOXES[:0]] * 2, [WHOLE] * 2)
        found = detector.behind(pooled, detector.layer_names)
        sizes = detector.layer_sizes
        assert {name: (len(v), v.flatten(1).shape[1]) for name, v in found.items()} == {
            name: (0, size) for name, size in sizes.items()
        }


@torch.no_grad()
def test_a_neck_has_a_head_of_its_own() -> None:
    detector = detector_of(parts=neck_parts)
    sizes = {"pool5": 8 * 16, "fc6": 24, "fc7": 24, "logits": 3, "deltas": 12}
    assert detector.layer_sizes == sizes
    assert detector.layer_names == tuple(sizes)
    assert detector.map_layers == ("conv2", "conv5")
    assert not any(name.startswith("network.fc") for name in detector.state_dict())
    maps = detector.maps(images_of())
    assert [tuple(one.shape) for one in maps] == [(2, 8, 19, 25), (2, 8, 10, 13)]
    found = outputs_of(detector)
    fc6 = (found["pool5"].flatten(1) @ detector.fc6.weight.T + detector.fc6.bias).clamp(min=0)
    torch.testing.assert_close(found["fc6"], fc6, rtol=1e-4, atol=1e-4)
    fc7 = (fc6 @ detector.fc7.weight.T + detector.fc7.bias).clamp(min=0)
    torch.testing.assert_close(found["fc7"], fc7, rtol=1e-4, atol=1e-4)
    # BOXES have sides from 1 to 83 pixels: pooled from both maps.
    finest = replace(detector.parts.pooling, strides=(4,))
    one_map = finest([maps[0]], [BOXES, BOXES[1:3] * 0.8])
    alike = [torch.equal(a, b) for a, b in zip(found["pool5"], one_map, strict=True)]
    assert any(alike)
    assert not all(alike)


def test_sizes_leave_the_mode_alone() -> None:
    detector = detector_of()
    for training in (True, False):
        detector.train(training)
        assert detector.layer_sizes["fc7"] == 256
        assert detector.training is training
        assert detector.network.training is training


def test_dropout_stands_before_the_outputs_in_training() -> None:
    detector = detector_of(dropout=True)
    assert isinstance(detector.dropout, nn.Dropout)
    pooled = detector.pool(detector.maps(images_of()), [BOXES] * 2, [WHOLE] * 2)
    still = detector.behind(pooled)["logits"]
    assert torch.equal(detector.behind(pooled)["logits"], still)
    detector.train()
    torch.manual_seed(0)
    assert not torch.equal(detector.behind(pooled)["logits"], still)
    assert isinstance(dropout_of(create_network("resnet18", 3)), nn.Identity)


def test_a_detectors_network_can_become_another_detector() -> None:
    # Ren et al. 2015: a detector is trained on, with other parts.
    for dropout in (False, True):
        before = detector_of(dropout=dropout)
        expected = outputs_of(before)
        values = {name: value.clone() for name, value in before.state_dict().items()}
        after = Detector(before.network, before.parts, 3)
        after.load_state_dict(values)
        same(outputs_of(after.eval()), expected)
        assert isinstance(after.dropout, nn.Dropout)
        assert after.dropout.p == 0.2


ROUND = {
    "cut": lambda: detector_of(),
    "aligned": lambda: detector_of(pooling=RegionPooling("align", 3, 0, (8,), aligned=True)),
    "neck": lambda: detector_of(parts=neck_parts),
    "finest": lambda: detector_of(
        parts=neck_parts,
        neck=replace(NECK, finest_only=True),
        pooling=RegionPooling("pool", 3, strides=(4,)),
    ),
    "resnet18": lambda: detector_of("resnet18", 4),
    "squeezenet": lambda: detector_of("squeezenet", 2),
}


@pytest.mark.parametrize("kind", ROUND)
def test_settings_and_tensors_give_the_same_detector(kind: str) -> None:
    detector = ROUND[kind]()
    settings = json.loads(json.dumps(detector.settings()))
    tensors = detector.tensors()
    assert all(isinstance(value, np.ndarray) for value in tensors.values())
    again = build_detector(settings, tensors)
    assert not again.training
    assert again.parts == detector.parts
    assert again.classes == detector.classes
    assert again.settings() == detector.settings()
    assert again.layer_sizes == detector.layer_sizes
    same(outputs_of(again), outputs_of(detector))
    for name, value in detector.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert torch.equal(again.deltas_std, detector.deltas_std)
    assert build_parts(json.loads(json.dumps(detector.parts.settings()))) == detector.parts


def test_frozen_batch_norms_are_constants_and_can_be_folded() -> None:
    detector = detector_of("resnet18")
    expected = outputs_of(detector)
    detector.train()
    same(outputs_of(detector), expected)
    fold_batch_norm(detector.eval())
    assert not any("BatchNorm" in type(module).__name__ for module in detector.modules())
    for name, values in outputs_of(detector).items():
        torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keep", [True, False])
def test_another_normalisation(keep: bool) -> None:
    detector = detector_of()
    before = detector.scaled_deltas(outputs_of(detector)["deltas"])
    plain = outputs_of(detector)["deltas"]
    random = torch.Generator().manual_seed(9)
    mean = torch.randn(3, 4, generator=random)
    deviation = torch.rand(3, 4, generator=random) + 0.1
    detector.normalise(mean, deviation, keep=keep)
    assert torch.equal(detector.deltas_mean, mean)
    assert torch.equal(detector.deltas_std, deviation)
    found = outputs_of(detector)["deltas"]
    if keep:
        torch.testing.assert_close(detector.scaled_deltas(found), before, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(found, plain)


def test_weights_with_a_mean_image_are_refused() -> None:
    own = Preprocessing(torch.zeros(3, 56, 56), torch.ones(3))
    network = create_network("demo", 3, torch.Generator(), preprocessing=own)
    with pytest.raises(SettingError, match="weights that subtract a mean image are for windows"):
        Detector(network, fast_parts(network), 3)


def test_networks_with_a_pyramid_are_refused() -> None:
    for levels in ((1, 2), (3,)):
        head = head_for("demo", Pyramid(levels), hidden=256)
        network = create_network("demo", 3, torch.Generator(), head=head)
        with pytest.raises(SettingError, match="a network with a pyramid pools its windows itself"):
            Detector(network, fast_parts(network), 3)


# Cells of 600 x 1000 pixels; 38 x 63 is in the papers' sheets, the rest follows from Caffe's rule
# ceil((n + 2 pad - kernel) / stride) + 1 and the authors' pads.
CELLS = {
    "caffenet": (39, 64),
    "resnet18": (38, 63),
    "squeezenet": (39, 64),
    "vgg16": (38, 63),
    "zf5": (39, 64),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_where_pooling_looks_for_them(name: str) -> None:
    network = create_network(name, 5)
    detector = Detector(network, fast.parts_of(network), 3).eval()
    (layer,) = detector.map_layers
    stride, centre = geometry_of(detector.network, layer)
    assert centre == (8.5 if name == "vgg16" else 1)  # VGG16's 2 x 2 poolings have no middle
    image = torch.empty(1, 3, 600, 1000, device="meta")
    found = without_values(detector, detector.network, image, (layer,))[layer]
    assert found.shape[2:] == CELLS[name]
    # The lower right corner of the image is in the last cell, or between the two last ones.
    last = [centre + stride * (cells - 1) for cells in CELLS[name]]
    for pixel, side in zip(last, (600, 1000), strict=True):
        assert abs(pixel - side) <= stride


@pytest.mark.parametrize("name", EXPECTED)
def test_the_smallest_image_has_a_cell(name: str) -> None:
    network = create_network(name, 5)
    detector = Detector(network, fast.parts_of(network), 3).eval()
    with torch.inference_mode():
        assert detector.maps(torch.zeros(1, 3, 1, 1))[0].shape[2:] == (1, 1)


def test_there_is_one_head() -> None:
    network = create_network("demo", 3)
    for cut, neck in ((None, None), (usual_cut("demo"), NECK)):
        with pytest.raises(SettingError, match="either a cut network or a neck"):
            Parts(VIEW, RegionPooling(strides=(8,)), cut, neck)
    # Cut elsewhere, where the maps are finer
    cut = Cut("conv4", "conv4", "conv5", 5)
    stride = geometry_of(network, "conv4").stride
    other = Parts(VIEW, RegionPooling("align", 5, strides=(stride,)), cut)
    sizes = {"pool5": 96 * 25, "conv5": 96 * 25, "logits": 3, "deltas": 12}
    assert Detector(network, other, 3).layer_sizes == sizes


Change = Callable[[dict[str, Any], dict[str, Any]], object]  # of settings and tensors


def put(*path: str, value: Any) -> Change:
    def change(settings: dict[str, Any], tensors: dict[str, Any]) -> None:
        reduce(getitem, path[:-1], settings)[path[-1]] = value

    return change


def without(*path: str) -> Change:
    def change(settings: dict[str, Any], tensors: dict[str, Any]) -> None:
        del reduce(getitem, path[:-1], settings)[path[-1]]

    return change


def tensor(name: str, value: Any) -> Change:
    def change(settings: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[name] = value

    return change


PARTS, POOLING = ("detector",), ("detector", "pooling")
DAMAGE: dict[str, tuple[Change, str]] = {
    "no parts": (put("detector", value={}), "there is no 'cut'"),
    "parts that are a list": (put("detector", value=[1]), "do not fit"),
    "parts that are a word": (put("detector", value="fast"), "do not fit"),
    "no view": (without("detector", "view"), "there is no 'view'"),
    "no network": (without("network"), "there is no 'network'"),
    "no classes": (without("classes"), "there is no 'classes'"),
    "classes of a word": (put("classes", value="three"), "do not fit"),
    "half a class": (put("classes", value=2.5), "do not fit"),
    "no class at all": (put("classes", value=0), "0 classes"),
    "fewer than no classes": (put("classes", value=-3), "-3 classes"),
    "other classes": (put("classes", value=4), "class_scores"),
    "more classes than memory": (put("classes", value=10**11), "do not fit"),
    "classes beyond all bounds": (put("classes", value=10**25), "do not fit"),
    "another network": (put("network", "network", value="lenet"), "no network 'lenet'"),
    "a larger network": (put("network", "network", value="zf5"), "do not fit"),
    "a network with a pyramid": (
        put("network", "head", value=head_for("demo", Pyramid((1, 2)), hidden=8).settings()),
        "with a pyramid",
    ),
    "a mean image": (put("network", "preprocessing", "mean", value=None), "mean image"),
    "neither cut nor neck": (put("detector", "cut", value=None), "either a cut network or a neck"),
    "a cut and a neck": (put("detector", "neck", value=NECK.settings()), "either a cut network"),
    "a neck that is a number": (put("detector", "neck", value=3), "do not fit"),
    "a cut at no layer": (put("detector", "cut", "map", value="conv9"), "'conv9'"),
    "a cut at a number": (put("detector", "cut", "map", value=5), "do not fit"),
    "a last layer unheard of": (put("detector", "cut", "layer", value="fc9"), "'fc9'"),
    "a source unheard of": (put("detector", "cut", "source", value="pool9"), "pool9"),
    "a source that is a list": (put("detector", "cut", "source", value=[]), "from []"),
    "a source behind the last layer": (put("detector", "cut", "source", value="logits"), "logits"),
    "a cut without a map": (without("detector", "cut", "map"), "map"),
    "a part of a cut unheard of": (put("detector", "cut", "depth", value=3), "depth"),
    "a cut that is a word": (put("detector", "cut", value="conv5"), "do not fit"),
    "another pooling": (put(*POOLING, "kind", value="mean"), "'mean' is none of pool, align"),
    "no bins": (put(*POOLING, "size", value=0), "0 bins a side"),
    "other bins": (put(*POOLING, "size", value=6), "do not fit"),
    "half bins": (put(*POOLING, "size", value=2.5), "do not fit"),
    "bins beyond all bounds": (put(*POOLING, "size", value=10**12), "do not fit"),
    "bins that are a word": (put(*POOLING, "size", value="x"), "do not fit"),
    "maps too many": (put(*POOLING, "strides", value=[8, 16]), "from 2 maps: there are 1"),
    "strides that are a word": (put(*POOLING, "strides", value="8"), "do not fit"),
    "strides that are a number": (put(*POOLING, "strides", value=8), "do not fit"),
    "a stride of nothing": (put(*POOLING, "strides", value=[0]), "strides '0'"),
    "no strides": (put(*POOLING, "strides", value=[]), "strides ''"),
    "half a stride": (put(*POOLING, "strides", value=[7.5]), "do not fit"),
    "a sampling that is a word": (put(*POOLING, "sampling", value="x"), "do not fit"),
    "a reference of a word": (put(*POOLING, "reference", value="x"), "do not fit"),
    "a part of a pooling unheard of": (put(*POOLING, "zoom", value=2), "zoom"),
    "no scales": (put("detector", "view", "scales", value=[]), "shorter sides of ''"),
    "a scale that is a word": (put("detector", "view", "scales", value=["x"]), "do not fit"),
    "scales that are a number": (put("detector", "view", "scales", value=7), "do not fit"),
    "a longest side too short": (put("detector", "view", "longest", value=7), "below a shorter"),
    "no multiple": (put("detector", "view", "multiple", value=0), "multiples of 0"),
    "another rounding": (put("detector", "view", "rounding", value="up"), "rounding 'up'"),
    "a view that is a word": (put("detector", "view", value="x"), "do not fit"),
    "anchors that are words": (put("detector", "anchors", value={"sizes": "x"}), "do not fit"),
    "anchors without rules": (
        put(
            "detector", "anchors", value={"sizes": [[8.0]], "ratios": [1.0], "placement": "authors"}
        ),
        "both anchors and rules",
    ),
    "rules unheard of": (put("detector", "proposals", value={"most": 3}), "most"),
    "a missing tensor": (lambda settings, tensors: tensors.pop("deltas_std"), "deltas_std"),
    "a tensor too many": (tensor("rpn.conv.weight", np.zeros(3, np.float32)), "rpn.conv.weight"),
    "a tensor of another shape": (tensor("deltas_mean", np.zeros(7, np.float32)), "deltas_mean"),
    "a tensor of words": (tensor("deltas_mean", np.array(["x"] * 3)), "do not fit"),
    "no tensors": (lambda settings, tensors: tensors.clear(), "do not fit"),
}


def told_of(detector: Detector, change: Change) -> str:
    """What is said of its settings and tensors when they are changed."""
    settings, tensors = json.loads(json.dumps(detector.settings())), detector.tensors()
    change(settings, tensors)
    with pytest.raises(SettingError) as caught:
        build_detector(settings, tensors)
    said = str(caught.value)
    assert "\n" not in said
    assert "fit ()" not in said
    return said


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings_and_tensors_are_told_in_a_sentence(damage: str) -> None:
    change, told = DAMAGE[damage]
    assert told in told_of(detector_of(), change)


NECK_DAMAGE: dict[str, tuple[Change, str]] = {
    "a layer unheard of": (put("detector", "neck", "layers", value=["conv2", "conv9"]), "conv9"),
    "a layer that is no map": (put("detector", "neck", "layers", value=["conv2", "fc6"]), "fit"),
    "other layers": (put("detector", "neck", "layers", value=["conv1", "conv5"]), "do not fit"),
    "no layers": (put("detector", "neck", "layers", value=[]), "at least one"),
    "layers that are a number": (put("detector", "neck", "layers", value=3), "do not fit"),
    "no channels": (put("detector", "neck", "channels", value=0), "0 channels"),
    "channels of a word": (put("detector", "neck", "channels", value="x"), "do not fit"),
    "other channels": (put("detector", "neck", "channels", value=16), "do not fit"),
    "channels beyond all bounds": (put("detector", "neck", "channels", value=10**15), "fit"),
    "hidden units of a word": (put("detector", "hidden", value="x"), "do not fit"),
    "no hidden units": (put("detector", "hidden", value=0), "0 hidden units"),
    "hidden units beyond all bounds": (put("detector", "hidden", value=10**15), "do not fit"),
    "maps too many": (put(*POOLING, "strides", value=[4, 8, 16]), "from 3 maps: there are 2"),
    "nothing to see": (put("detector", "neck", "lateral", value=None), "do not fit"),
}


@pytest.mark.parametrize("damage", NECK_DAMAGE)
def test_damaged_necks_are_told_in_a_sentence(damage: str) -> None:
    change, told = NECK_DAMAGE[damage]
    assert told in told_of(detector_of(parts=neck_parts), change)


def test_parts_and_necks_round_trip() -> None:
    neck = Neck(("conv1", "conv2", "conv5"), 16, lateral=False)
    parts = Parts(VIEW, RegionPooling("align", 7, strides=(2, 4, 8)), neck=neck, hidden=7)
    assert build_parts(json.loads(json.dumps(parts.settings()))) == parts


def test_an_rpn_fits_its_maps() -> None:
    random = torch.Generator().manual_seed(0)
    usual = fpn.parts_of(create_network("demo", 3, random), VIEW)
    assert usual.anchors is not None
    anchors = replace(usual.anchors, sizes=usual.anchors.sizes[:2])
    cut = faster.parts_of(create_network("demo", 3, random), VIEW)
    for parts, changed, told in (
        (usual, {"anchors": anchors}, "anchors of 2 maps for 4"),
        (usual, {"rpn_strides": (4, 8)}, "anchors of 4 maps for 2"),
        (usual, {"rpn_strides": (4,) * 9}, "an RPN cannot look at 9 maps: there are 3"),
        (usual, {"separate_heads": "no"}, "separate heads of an RPN are for several maps"),
        (cut, {"separate_heads": True}, "separate heads of an RPN are for several maps"),
    ):
        values: dict[str, Any] = changed
        with pytest.raises(SettingError, match=told):
            replace(parts, **values)
