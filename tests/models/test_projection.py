"""From pixels to cells: the sheet's tables by value, and receptive fields measured by gradients."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models.architectures import NETWORKS
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.classic import WithinChannelNorm
from rcnnpipe.models.map_view import (
    PROJECTIONS,
    SCALE_CHOICES,
    SCALES,
    MapView,
    build_view,
    usual_view,
)
from rcnnpipe.models.projection import (
    MapGeometry,
    choose_scales,
    geometry_of,
    project,
    resized_size,
    scaled,
    unclamped,
)
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from tests.reference import projection as slow

ZF5 = MapGeometry(16, 21)
PADDED_BY_HALF = MapGeometry(16, 1)  # what the paper's formula is for


def windows_of(*windows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(windows, dtype=torch.float64)


def continuous(*box: float) -> torch.Tensor:
    """A 1-based inclusive box as the conventions of this library have it."""
    return torch.tensor([[box[0] - 1, box[1] - 1, box[2], box[3]]])


# Sheet section 5: scaled box, the code's cells for ZF-5, the paper's formula; before the clamp. The
# code counts cells from 1, the paper, for whom cell x' is centred on pixel S x', from 0.
CELLS = [
    ((1, 1, 224, 224), (0, 0, 13, 13), (1, 1, 13, 13)),
    ((100, 60, 323, 283), (6, 4, 19, 17), (7, 4, 20, 17)),
    ((33, 33, 64, 64), (2, 2, 3, 3), (3, 3, 3, 3)),
    ((200, 200, 240, 210), (13, 13, 14, 12), (13, 13, 14, 13)),
]


@pytest.mark.parametrize(("window", "authors", "paper"), CELLS)
def test_cells_before_the_clamp_are_the_sheets(
    window: tuple[int, ...], authors: tuple[int, ...], paper: tuple[int, ...]
) -> None:
    windows = windows_of(window)
    assert tuple(unclamped(windows, ZF5, "authors")[0].tolist()) == authors
    found = unclamped(windows, PADDED_BY_HALF, "paper")[0] - 1
    assert tuple(found.tolist()) == paper


def test_cells_are_counted_from_zero_repaired_and_clamped() -> None:
    # Rows 1 and 4 of the table, on a map of 13: (0, 0, 13, 13) -> (1, 1, 13, 13); and
    # (13, 13, 14, 12): y from 13 to 12 becomes 12 and 12, x is cut at 13.
    windows = windows_of((1, 1, 224, 224), (200, 200, 240, 210))
    assert project(windows, ZF5, (13, 13), "authors").tolist() == [[0, 0, 12, 12], [12, 11, 12, 11]]
    # Height and width are not mixed up: row 2 of the table is x 7..20 and y 4..17 of 15 rows.
    found = project(windows_of((100, 60, 323, 283)), PADDED_BY_HALF, (15, 30), "paper")
    assert found.tolist() == [[7, 4, 20, 14]]


@pytest.mark.parametrize("rule", PROJECTIONS)
def test_pixels_are_counted_from_the_first_cells_centre(rule: str) -> None:
    windows = windows_of((100.25, 60, 323, 283.5), (33, 33, 64, 64), (-7, 5, 90, 5))
    expected = unclamped(windows, PADDED_BY_HALF, rule)
    assert torch.equal(unclamped(windows + 20, ZF5, rule), expected)
    # Everything twice as large but the pixel, which both count from 1
    twice = unclamped(2 * windows - 1, MapGeometry(32, 1), "authors")
    assert torch.equal(twice, unclamped(windows, PADDED_BY_HALF, "authors"))


# By how much of a stride the outermost centre may lie outside of a window: in the code 8 of 16
# pixels, less the shrink of 6.5; in the paper nothing.
@pytest.mark.parametrize(("rule", "outside"), [("paper", 0), ("authors", 1.5 / 16)])
def test_cells_lie_evenly_in_their_windows(rule: str, outside: float) -> None:
    random = np.random.default_rng(0)
    low = random.uniform(100, 600, (500, 2))
    windows = torch.from_numpy(np.hstack((low, low + random.uniform(70, 300, (500, 2)))))
    for geometry in (ZF5, MapGeometry(8, 7), MapGeometry(32, 1)):
        centres = (unclamped(windows, geometry, rule) - 1) * geometry.stride + geometry.centre
        left, right = centres[:, :2] - windows[:, :2], windows[:, 2:] - centres[:, 2:]
        for inside in (left / geometry.stride, right / geometry.stride):
            assert inside.min() >= -outside
            assert inside.max() <= 1 - outside
            assert float(inside.mean()) == pytest.approx(0.5 - outside, abs=0.03)


def test_a_window_of_the_code_can_shrink_by_other_pixels() -> None:
    # Centres 1, 17, 33: an edge at 8 is nearer to the first, one at 10 to the second.
    windows = windows_of((8, 10, 40, 42))
    assert unclamped(windows, PADDED_BY_HALF, "authors", shrink=0).tolist() == [[1, 2, 3, 4]]
    # 4 pixels within: 12, 14, 36, 38
    assert unclamped(windows, PADDED_BY_HALF, "authors", shrink=4).tolist() == [[2, 2, 3, 3]]
    assert project(windows, PADDED_BY_HALF, (3, 3), "authors", shrink=0).tolist() == [[0, 1, 2, 2]]
    usual = unclamped(windows, PADDED_BY_HALF, "authors")
    assert torch.equal(usual, unclamped(windows, PADDED_BY_HALF, "authors", shrink=6.5))


# Sheet section 5: a box on an image of 500 x 375, by the code
@pytest.mark.parametrize(
    ("scale", "pixels", "cells", "width", "height"),
    [
        (688, (182.85, 146.11, 539.21, 502.47), (12, 9, 33, 31), 56, 42),
        (480, None, (8, 6, 23, 21), 39, 29),
    ],
)
def test_the_sheets_example(
    scale: int,
    pixels: tuple[float, ...] | None,
    cells: tuple[int, ...],
    width: int,
    height: int,
) -> None:
    windows = scaled(continuous(100, 80, 294, 274), 375, scale)
    if pixels is not None:
        assert windows[0].tolist() == pytest.approx(pixels, abs=0.005)
    resized = resized_size((375, 500), scale)
    assert map_size("zf5", *resized) == (height, width)
    found = project(windows, ZF5, (height, width), "authors")
    assert (found[0] + 1).tolist() == list(cells)


def test_corners_stay_corners() -> None:
    whole = torch.tensor([[0.0, 0, 500, 375], [0, 0, 1, 1]])
    assert scaled(whole, 375, 1200).tolist()[0] == pytest.approx([1, 1, 499 * 1199 / 374 + 1, 1200])
    assert scaled(whole, 375, 1200).tolist()[1] == [1, 1, 1, 1]
    each = scaled(whole, 375, torch.tensor([480, 688]))
    for row, scale in enumerate((480, 688)):
        assert torch.equal(each[row], scaled(whole, 375, scale)[row])
    # A single pixel becomes 7: as if there were two, its place times 6.
    assert scaled(torch.tensor([[0.0, 3, 1, 9]]), 1, 7).tolist() == [[1, 19, 1, 49]]


def test_sides_of_resized_images() -> None:
    assert resized_size((375, 500), 688) == (688, 917)  # 917.33
    assert resized_size((500, 375), 480) == (640, 480)
    assert resized_size((1, 1000), 3) == (3, 3000)
    assert resized_size((375, 500), 375) == (375, 500)


# Sheet section 6: width, height, scale for either reference, shorter side 375
CHOICES = [
    ((100, 100), 864, 864),
    ((200, 150), 480, 480),
    ((500, 375), 480, 480),
    ((41, 41), 1200, 1200),
]


@pytest.mark.parametrize(("side", "at_208", "at_224"), CHOICES)
def test_scales_are_the_sheets(side: tuple[int, int], at_208: int, at_224: int) -> None:
    box = torch.tensor([[0.0, 0, *side]])

    def chosen(reference: float, rule: str) -> int:
        return SCALES[int(choose_scales(box, 375, SCALES, reference, rule))]

    assert chosen(208, "nearest-scale") == at_208
    assert chosen(224, "nearest-scale") == at_224
    assert chosen(224, "nearest-area") == at_224


def test_targets_of_the_code_are_the_sheets() -> None:
    # With every whole number as a scale, the one nearest to the target is the target.
    every = range(1, 2100)
    boxes = torch.tensor([[0.0, 0, *side] for side, *_ in CHOICES])
    for reference, targets in ((208, (780, 450, 180, 1902)), (224, (840, 485, 194, 2049))):
        found = choose_scales(boxes, 375, every, reference, "nearest-scale") + 1
        assert tuple(found.tolist()) == targets


def test_the_two_rules_differ() -> None:
    # A square of 100 on an image of 100: scaled it is 160 or 276 wide, for 224.
    # By scale 64 against 52, by area 50176 - 25600 = 24576 against 76176 - 50176 = 26000.
    box = torch.tensor([[0.0, 0, 100, 100]])
    assert choose_scales(box, 100, (160, 276), 224, "nearest-scale").tolist() == [1]
    assert choose_scales(box, 100, (160, 276), 224, "nearest-area").tolist() == [0]


def test_the_first_of_equals_is_taken() -> None:
    box = torch.tensor([[0.0, 0, 8, 8]])
    for scales in ((200, 248), (248, 200)):
        assert choose_scales(box, 8, scales, 224, "nearest-scale").tolist() == [0]
    for scales in ((1, 7), (7, 1)):  # areas 1 and 49, both 24 from 25
        assert choose_scales(box, 8, scales, 5, "nearest-area").tolist() == [0]


def test_no_regions() -> None:
    none = torch.zeros(0, 4)
    assert choose_scales(none, 375, SCALES, 224, "nearest-area").shape == (0,)
    assert project(scaled(none, 375, 480), ZF5, (29, 39), "paper").shape == (0, 4)


def test_a_region_without_area_has_a_scale() -> None:
    flat = torch.tensor([[5.0, 5, 5, 9]])
    for rule in ("nearest-area", "nearest-scale"):
        assert choose_scales(flat, 375, SCALES, 224, rule).tolist() == [4]  # the largest


@pytest.mark.parametrize("rule", SCALE_CHOICES)
def test_scales_equal_the_slow_reference(rule: str) -> None:
    random = np.random.default_rng(0)
    low = random.uniform(0, 300, (300, 2))
    boxes = np.hstack((low, low + random.uniform(1, 200, (300, 2)))).astype(np.float32)
    for scales in (SCALES, (700, 480, 1200)):
        found = choose_scales(torch.from_numpy(boxes), 375, scales, 224, rule)
        expected = [slow.scale_of(box, 375, scales, 224, rule) for box in boxes.tolist()]
        assert found.tolist() == expected
        assert set(expected) == set(range(len(scales)))


@pytest.mark.parametrize("rule", PROJECTIONS)
@pytest.mark.parametrize(
    "geometry", [ZF5, MapGeometry(8, 7), MapGeometry(16, 8.5), MapGeometry(32, 1)], ids=str
)
def test_no_window_is_empty(geometry: MapGeometry, rule: str) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(-400, 700, (500, 2))
    # Tiny, ordinary and inverted ones; a fifth begin far outside.
    windows = np.hstack((corners, corners + random.uniform(-60, 300, (500, 2))))
    windows[:100, 2:] = windows[:100, :2] + random.uniform(0, 2, (100, 2))
    windows[100:200] = windows[100:200].round()
    for size in ((1, 1), (13, 13), (29, 39)):
        cells = project(torch.from_numpy(windows), geometry, size, rule)
        assert (cells[:, 2:] >= cells[:, :2]).all()
        assert (cells >= 0).all()
        assert (cells[:, [0, 2]] < size[1]).all()
        assert (cells[:, [1, 3]] < size[0]).all()
        expected = [slow.cells_of(one, *geometry, size, rule) for one in windows.tolist()]
        assert cells.tolist() == expected


def test_unknown_rules_are_refused() -> None:
    box = torch.zeros(1, 4)
    with pytest.raises(SettingError, match="'nearest' is none of nearest-area, nearest-scale"):
        choose_scales(box, 10, (5,), 4, "nearest")
    with pytest.raises(SettingError, match="'exact' is none of paper, authors"):
        project(box, ZF5, (5, 5), "exact")


def map_size(name: str, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a network's last map; nothing is computed."""
    network = create_network(name, 2).to("meta")
    layer = network.architecture.map
    shape = network(torch.empty(1, 3, height, width, device="meta"), (layer,))[layer].shape
    return shape[2], shape[3]


# Sheet section 3
ZF5_SIZES = {
    180: 10,
    224: 13,
    256: 15,
    480: 29,
    576: 35,
    688: 42,
    864: 53,
    874: 53,
    1200: 74,
}


def test_sizes_of_zf5s_maps_are_the_sheets() -> None:
    assert {side: map_size("zf5", side, side)[0] for side in ZF5_SIZES} == ZF5_SIZES


# By hand, from kernel k, stride s and padding p of each layer: the centre moves by
# ((k - 1) / 2 - p) times the stride so far, and the stride grows by s.
GEOMETRIES = {
    # conv 7/2/1: + 2, pool 3/2: + 2, conv 5/2: + 2 * 4, pool 3/2: + 8; 1 + 20
    ("zf5", "conv5"): (16, 21),
    # conv 5/2/2: 0, two pools 3/2: + 2 and + 4
    ("demo", "conv5"): (8, 7),
    # conv 11/4/2: + 3, pools + 4 and + 8
    ("alexnet", "conv5"): (16, 16),
    # the same without padding: + 5
    ("caffenet", "conv5"): (16, 18),
    ("caffenet", "conv1"): (4, 6),
    # four pools 2/2: half of 1, 2, 4 and 8
    ("vgg16", "conv5_3"): (16, 8.5),
    # conv 7/2: + 3, pools + 2, + 4 and + 8
    ("squeezenet", "fire9"): (16, 18),
    # all padded by half
    ("resnet18", "layer3"): (16, 1),
    ("resnet18", "layer4"): (32, 1),
    ("resnet50", "layer4"): (32, 1),
}
WIDTHS = {"resnet18": 700, "resnet50": 700}  # their cells see up to 483 pixels


@pytest.mark.parametrize(("name", "layer"), GEOMETRIES)
def test_geometry_is_where_gradients_come_from(name: str, layer: str) -> None:
    expected = GEOMETRIES[name, layer]
    assert geometry_of(create_network(name, 2), layer) == expected
    image = torch.rand(1, 3, 48, WIDTHS.get(name, 340)).requires_grad_()
    maps = without_choices(name, layer)(image)
    middle = maps.shape[3] // 2
    centres = []
    for cell in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(maps[..., cell].sum(), image, retain_graph=True)
        columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten().tolist()
        assert 0 < columns[0] < columns[-1] < image.shape[3] - 1  # no border cuts it
        centres.append((columns[0] + columns[-1]) / 2 + 1)
    stride = centres[1] - centres[0]
    assert (stride, centres[0] - middle * stride) == expected


def without_choices(name: str, layer: str) -> nn.Module:
    """A network up to a layer in which every pixel counts: averages, constant weights, no norms."""
    with torch.device("meta"):
        body = NETWORKS[name].build(2)
    chain: list[nn.Module] = []
    while layer != "image":
        source, paths = NETWORKS[name].layers[layer]
        chain = [body.get_submodule(path) for path in paths] + chain
        layer = source
    whole = nn.Sequential(*chain)
    replace_parts(whole)
    whole.to_empty(device="cpu")
    for part in whole.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1 / part.weight[0].numel())
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return whole.eval()


def replace_parts(module: nn.Module) -> None:
    for name, part in tuple(children_of(module)):
        if isinstance(part, nn.MaxPool2d):
            settings = (part.kernel_size, part.stride, part.padding, part.ceil_mode)
            module.add_module(name, nn.AvgPool2d(*settings))  # type: ignore[arg-type]
        elif isinstance(part, nn.BatchNorm2d | nn.LocalResponseNorm | WithinChannelNorm):
            module.add_module(name, nn.Identity())
        elif isinstance(part, nn.ReLU):
            module.add_module(name, nn.ReLU())
        else:
            replace_parts(part)


def children_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All children, those too that stand in several places."""
    yield from ((name, part) for name, part in module._modules.items() if part is not None)


def test_geometry_does_not_change_under_a_pyramid() -> None:
    head = head_for("zf5", Pyramid())
    assert geometry_of(create_network("zf5", 2, head=head), head.map) == ZF5
    head = head_for("resnet18", Pyramid(), "layer3")
    assert geometry_of(create_network("resnet18", 2, head=head), "layer3") == (16, 1)


def test_layers_that_are_no_maps_are_refused() -> None:
    for name, layer in (("demo", "fc6"), ("squeezenet", "pool5"), ("resnet18", "logits")):
        with pytest.raises(SettingError, match="follows a pooling of the whole map is no map"):
            geometry_of(create_network(name, 2), layer)
    pooled = create_network("demo", 2, head=head_for("demo", Pyramid()))
    with pytest.raises(SettingError, match="follows a pooling of the whole map is no map"):
        geometry_of(pooled, "pool5")
    with pytest.raises(SettingError, match="demo has no layer 'conv9'; there are conv1, pool1"):
        geometry_of(create_network("demo", 2), "conv9")


def test_views_round_trip_and_refuse_nonsense() -> None:
    view = MapView((480, 688), 208, "nearest-scale", "authors")
    assert build_view(json.loads(json.dumps(view.settings()))) == view
    assert usual_view(224) == MapView()
    # 480 * 56 / 224 = 120, ..., 688 / 4, 1200 / 4
    assert usual_view(56) == MapView((120, 144, 172, 216, 300), 56)
    for scales, reference in (((), 224), ((480, 0), 224), ((480,), 0)):
        with pytest.raises(SettingError, match="give at least one scale, all above 0"):
            MapView(scales, reference)
    with pytest.raises(SettingError, match="'best' is none of nearest-area, nearest-scale"):
        MapView(choice="best")
    with pytest.raises(SettingError, match="'theirs' is none of paper, authors"):
        MapView(projection="theirs")
