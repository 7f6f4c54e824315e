"""Features from maps, against one region after another; scales, mirrors, what is refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rcnnpipe.errors import SettingError
from rcnnpipe.extraction import maps as module
from rcnnpipe.extraction.choice import extractor_for
from rcnnpipe.extraction.maps import MapExtractor, layers_behind
from rcnnpipe.extraction.regions import Regions, extract, mirrored
from rcnnpipe.extraction.windows import WindowExtractor
from rcnnpipe.images import read_image
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.map_view import PROJECTIONS, SCALE_CHOICES, MapView
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.projection import geometry_of
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from tests.reference import projection as slow
from tests.training.made import draw_records, record_of

LAYERS = ("pool5", "fc6", "fc7", "logits")
LEVELS = (1, 2, 3, 6)
SIZE = (72, 96)  # height, width
CPU = torch.device("cpu")
Pixels = npt.NDArray[np.uint8]


def network_of(
    name: str = "demo", view: MapView | None = None, scale: float = 1, **settings: Any
) -> Network:
    head = head_for(name, Pyramid(LEVELS, scale=scale), hidden=16)
    head = replace(head, view=view or MapView((48, 90, 150), 56))
    return create_network(name, 4, torch.Generator().manual_seed(0), head=head, **settings)


def extractor_of(
    network: Network | None = None,
    layers: Sequence[str] = LAYERS,
    view: MapView | None = None,
    **settings: Any,
) -> MapExtractor:
    network = network or network_of()
    assert network.head is not None
    geometry = geometry_of(network, network.head.map)
    return MapExtractor(network, layers, CPU, view or network.head.view, geometry, **settings)


def pixels_of(seed: int = 0, size: tuple[int, int] = SIZE) -> Pixels:
    """Bright rectangles on noise."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 90, (*size, 3), dtype=np.uint8)
    image[10:40, 20:70] = (250, 40, 90)
    image[30:60, 50:90, 1] = 220
    return image


def boxes_of(count: int = 25, seed: int = 0) -> npt.NDArray[np.float32]:
    """Regions of all sizes: the whole image, single pixels in the corners, slivers."""
    random = np.random.default_rng(seed)
    low = random.random((count, 2)) * 0.7
    high = low + 0.03 + random.random((count, 2)) * (0.97 - low)
    boxes = np.concatenate((low, high.clip(max=1)), axis=1) * (SIZE[1], SIZE[0], SIZE[1], SIZE[0])
    special = [(0, 0, 96, 72), (0, 0, 1, 1), (95, 71, 96, 72), (0, 30, 96, 31)]
    boxes[: len(special)] = special[:count]
    return boxes.astype(np.float32)


def regions_of(boxes: npt.NDArray[np.float32] | None = None, image_id: str = "image") -> Regions:
    record = record_of(image_id=image_id, size=SIZE)
    return Regions(record, boxes_of() if boxes is None else boxes)


def resized(image: Pixels, height: int, width: int) -> npt.NDArray[np.float64]:
    """Bilinear, no antialias: each pixel between the four nearest of the old ones."""

    def places(new: int, old: int) -> tuple[Any, Any, Any]:
        place = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        first = np.floor(place).astype(int)
        return first, np.minimum(first + 1, old - 1), place - first

    top, bottom, down = places(height, image.shape[0])
    left, right, across = places(width, image.shape[1])
    pixels = image.astype(np.float64)
    down, across = down[:, None, None], across[None, :, None]
    rows = pixels[top] * (1 - down) + pixels[bottom] * down
    mixed: npt.NDArray[np.float64] = rows[:, left] * (1 - across) + rows[:, right] * across
    return mixed


def map_of(network: Network, image: Pixels, scale: int) -> Tensor:
    """The map of a scaled image, by the parts of the network."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    pixels = resized(image, round(height * scale / shorter), round(width * scale / shorter))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    value = torch.from_numpy((pixels / 255 - mean) / std).float().permute(2, 0, 1)[None]
    parts = "conv1 relu pool conv2 relu pool conv3 relu conv4 relu conv5 relu"
    for part in parts.split():
        value = network.get_submodule(part)(value)
    return value[0]


def slow_features(
    network: Network, view: MapView, image: Pixels, box: Sequence[float]
) -> tuple[int, list[int], dict[str, Tensor]]:
    """Scale, cells and layers of one region alone."""
    shorter = min(image.shape[:2])
    number = slow.scale_of(box, shorter, view.scales, view.reference, view.choice)
    maps = map_of(network, image, view.scales[number])
    window = slow.window_of(box, shorter, view.scales[number])
    # The demo's map: a cell every 8 pixels, the first in the middle of pixel 7
    cells = slow.cells_of(window, 8, 7, (maps.shape[1], maps.shape[2]), view.projection)
    crop = maps[None, :, cells[1] : cells[3] + 1, cells[0] : cells[2] + 1]
    pooled = [nn.functional.adaptive_max_pool2d(crop, n).flatten() for n in LEVELS]
    found = {"pool5": torch.cat(pooled)}
    found["fc6"] = network.get_submodule("fc6")(found["pool5"]).relu()
    found["fc7"] = network.get_submodule("fc7")(found["fc6"]).relu()
    found["logits"] = network.get_submodule("fc8")(found["fc7"])
    return number, cells, found


def same_features(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("choice", SCALE_CHOICES)
@pytest.mark.parametrize("scales", [(48, 90, 150), (64,), (150, 33)], ids=str)
@torch.inference_mode()
def test_features_equal_one_region_after_another(
    scales: tuple[int, ...], choice: str, projection: str
) -> None:
    view = MapView(scales, 56, choice, projection)
    network, image, todo = network_of(view=view), pixels_of(), regions_of()
    found = extractor_of(network)(image, todo)
    assert list(found) == [*LAYERS, "scale", "cells"]
    assert {found[layer].dtype for layer in LAYERS} == {torch.float16}
    for row, box in enumerate(todo.boxes.tolist()):
        number, cells, expected = slow_features(network, view, image, box)
        assert int(found["scale"][row]) == number
        assert found["cells"][row].tolist() == cells
        for layer in LAYERS:
            values = found[layer][row].float()
            torch.testing.assert_close(values, expected[layer], rtol=2e-3, atol=2e-3)
    assert set(found["scale"].tolist()) == set(range(len(scales)))


@pytest.mark.parametrize("size", [(96, 72), (40, 130)])
@torch.inference_mode()
def test_upright_images(size: tuple[int, int]) -> None:
    image, network = pixels_of(size=size), network_of()
    assert network.head is not None
    boxes = boxes_of(8) * np.float32(min(size) / 96)
    found = extractor_of(network)(image, regions_of(boxes))
    for row, box in enumerate(boxes.tolist()):
        number, cells, expected = slow_features(network, network.head.view, image, box)
        assert (int(found["scale"][row]), found["cells"][row].tolist()) == (number, cells)
        torch.testing.assert_close(
            found["pool5"][row].float(), expected["pool5"], rtol=2e-3, atol=2e-3
        )


def test_the_order_of_regions_is_kept() -> None:
    extractor, image, boxes = extractor_of(), pixels_of(), boxes_of(40)
    expected = extractor(image, regions_of(boxes))
    order = np.random.default_rng(1).permutation(len(boxes))
    found = extractor(image, regions_of(boxes[order]))
    same_features(found, {name: values[order] for name, values in expected.items()})


def test_one_region_alone_is_what_it_is_among_others() -> None:
    extractor, image, boxes = extractor_of(), pixels_of(), boxes_of(6)
    together = extractor(image, regions_of(boxes))
    for row in range(len(boxes)):
        alone = extractor(image, regions_of(boxes[[row]]))
        for name in ("pool5", "scale", "cells"):
            assert torch.equal(alone[name][0], together[name][row])
        torch.testing.assert_close(alone["fc7"][0], together["fc7"][row], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_the_batch_size_changes_little(batch_size: int) -> None:
    expected = extractor_of()(pixels_of(), regions_of())
    found = extractor_of(batch_size=batch_size)(pixels_of(), regions_of())
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=2e-3, atol=1e-3)


def counted(network: Network, name: str) -> list[int]:
    """How many rows or images run through a part, at each call from now on."""
    rows: list[int] = []

    def count(part: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if not made.is_meta:
            rows.append(len(given[0]))

    network.get_submodule(name).register_forward_hook(count)
    return rows


def test_equal_cells_are_computed_once() -> None:
    network = network_of()
    boxes = np.repeat(boxes_of(7), 3, axis=0)
    boxes[::3] += np.float32(0.01)  # nearly the same, on the same cells
    boxes[:3] = boxes[0]
    rows, images = counted(network, "fc6"), counted(network, "conv1")
    found = extractor_of(network)(pixels_of(), regions_of(boxes))
    places = torch.cat((found["scale"][:, None], found["cells"]), dim=1)
    different = set(map(tuple, places.tolist()))
    assert sum(rows) == len(different) < len(boxes)
    assert images == [1] * len(set(found["scale"].tolist()))
    for place in different:
        own = (places == torch.tensor(place)).all(1).nonzero().flatten()
        for layer in LAYERS:
            assert (found[layer][own] == found[layer][own[0]]).all()


def test_scales_that_no_region_needs_are_not_computed() -> None:
    network = network_of(view=MapView((16, 60, 900), 56))
    images = counted(network, "conv1")
    # 56 pixels of an image of 72: 47, the scale of 60 is nearest.
    boxes = np.array([[5, 5, 61, 61], [10, 8, 66, 64]], np.float32)
    found = extractor_of(network)(pixels_of(), regions_of(boxes))
    assert found["scale"].tolist() == [1, 1]
    assert images == [1]


@torch.inference_mode()
def test_the_whole_image_is_what_the_network_makes_of_it() -> None:
    # At a scale of its own size: the same as a pass of the image, of whose map one window is all.
    network = network_of(view=MapView((72,), 56), scale=0.25)
    image = pixels_of()
    extractor = extractor_of(network)
    height, width = 9, 12  # cells of 72 x 96 pixels
    found = extractor(image, regions_of(np.array([[-99, -99, 199, 199]], np.float32)))
    assert found["cells"].tolist() == [[0, 0, width - 1, height - 1]]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = network(network.preprocessing.apply(pixels), LAYERS)
    for layer in LAYERS:
        torch.testing.assert_close(found[layer].float(), expected[layer], rtol=2e-3, atol=2e-3)
    whole = extractor_of(network_of(view=MapView((72,), 56)))(image, regions_of())
    quarter = extractor(image, regions_of())["pool5"]
    torch.testing.assert_close(quarter, 0.25 * whole["pool5"], rtol=2e-3, atol=1e-3)


def test_random_scales() -> None:
    extractor = extractor_of(layers=("pool5",), random_scales=True, seed=3)
    boxes = np.repeat(boxes_of(1), 300, axis=0)
    first = extractor(pixels_of(), regions_of(boxes))
    same_features(extractor(pixels_of(), regions_of(boxes)), first)
    counts = first["scale"].bincount(minlength=3)
    assert counts.min() > 70  # of 100 each
    other_image = extractor(pixels_of(), regions_of(boxes, "another"))["scale"]
    other_seed = replace(extractor, seed=4)(pixels_of(), regions_of(boxes))["scale"]
    own = extractor_of(layers=("pool5",))(pixels_of(), regions_of(boxes))["scale"]
    for scale in (other_image, other_seed, own):
        assert not torch.equal(scale, first["scale"])
    # The cells are those of the scale that was drawn.
    for number, side in enumerate(extractor.view.scales):
        alone = extractor_of(view=replace(extractor.view, scales=(side,)))
        cells = alone(pixels_of(), regions_of(boxes[:1]))["cells"]
        assert (first["cells"][first["scale"] == number] == cells).all()


def test_mirrored_regions(tmp_path: Path) -> None:
    record = draw_records(tmp_path, 1)[0]
    todo = Regions(record, boxes_of(9))
    other = mirrored(todo)
    assert other.record.image_id == "000@mirrored"
    x1, y1, x2, y2 = todo.boxes.T
    np.testing.assert_array_equal(other.boxes, np.stack((96 - x2, y1, 96 - x1, y2), axis=1))
    assert other.boxes.dtype == np.float32
    (own,) = record.boxes
    assert other.record.boxes.tolist() == [[96 - own[2], own[1], 96 - own[0], own[3]]]
    flipped = tmp_path / "flipped.png"
    Image.fromarray(read_image(record.path)[:, ::-1]).save(flipped)
    as_file = Regions(replace(other.record, path=flipped), other.boxes)
    extractor = extractor_of()
    found = [dict(values) for _, values in extract(extractor, [todo, other, as_file], workers=1)]
    for name, values in found[2].items():
        np.testing.assert_array_equal(found[1][name], values)
    assert not np.array_equal(found[1]["pool5"], found[0]["pool5"])
    # Random scales of the two are drawn apart.
    random = extractor_of(random_scales=True)
    one, two = (values["scale"] for _, values in extract(random, [todo, other], workers=1))
    assert not np.array_equal(one, two)


def test_a_mean_image_is_stretched_over_the_image() -> None:
    mean, std = torch.tensor([100.0, 110.0, 120.0]), torch.tensor([1.0, 2.0, 3.0])
    constant = network_of(preprocessing=Preprocessing(mean, std))
    stretched = network_of(
        preprocessing=Preprocessing(mean.view(3, 1, 1).expand(3, 56, 56).clone(), std)
    )
    expected = extractor_of(constant)(pixels_of(), regions_of())
    found = extractor_of(stretched)(pixels_of(), regions_of())
    torch.testing.assert_close(found["pool5"], expected["pool5"], rtol=2e-3, atol=2e-3)
    # A mean that is the image itself leaves nothing, whatever the scale: all regions are alike.
    image = pixels_of(size=(56, 56))
    own = torch.from_numpy(image).float().permute(2, 0, 1)
    nothing = network_of(preprocessing=Preprocessing(own, std))
    boxes = boxes_of()[:, [1, 1, 3, 3]] * np.float32(56 / 72)
    boxes[:, 2:] += 1
    found = extractor_of(nothing)(image, regions_of(boxes))
    black = extractor_of(network_of(preprocessing=Preprocessing(torch.zeros(3), std)))(
        np.zeros_like(image), regions_of(boxes)
    )
    torch.testing.assert_close(found["pool5"], black["pool5"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_near(precision: str) -> None:
    expected = extractor_of()(pixels_of(), regions_of())
    found = extractor_of(precision=precision)(pixels_of(), regions_of())
    assert torch.equal(found["cells"], expected["cells"])
    for layer in LAYERS:
        assert found[layer].dtype == torch.float16
        difference = (found[layer].float() - expected[layer].float()).abs().max()
        assert 0 < difference < 0.05 * expected[layer].abs().max()


def test_no_regions() -> None:
    network = network_of()
    images = counted(network, "conv1")
    for random_scales in (False, True):
        extractor = extractor_of(network, random_scales=random_scales)
        found = extractor(pixels_of(), regions_of(np.zeros((0, 4), np.float32)))
        shapes = {name: tuple(values.shape) for name, values in found.items()}
        sizes = {"pool5": 4800, "fc6": 16, "fc7": 16, "logits": 4}
        assert shapes == {layer: (0, size) for layer, size in sizes.items()} | {
            "scale": (0,),
            "cells": (0, 4),
        }
    assert images == []


def test_a_map_of_one_cell_is_enough() -> None:
    # A shorter side of 7: 7 x 9 pixels, convolved 4 x 5, pooled 2 x 2 and 1 x 1
    found = extractor_of(view=MapView((7,), 56))(pixels_of(), regions_of())
    assert not found["cells"].any()
    for layer in LAYERS:
        assert (found[layer] == found[layer][0]).all()
    assert found["pool5"].any()


# Shorter sides from which on the maps have a cell
SMALLEST = {"demo": 7, "caffenet": 23, "zf5": 31, "alexnet": 31}


@pytest.mark.parametrize("name", SMALLEST)
def test_images_without_a_cell_are_named(name: str) -> None:
    network, image = network_of(name), pixels_of(size=(72, 72))
    regions = regions_of(boxes_of(2) * np.float32(0.7))
    found = extractor_of(network, view=MapView((SMALLEST[name],), 56))(image, regions)
    assert not found["cells"].any()
    for side in (SMALLEST[name] - 1, 1):
        extractor = extractor_of(network, view=MapView((side,), 56))
        with pytest.raises(
            SettingError,
            match=f"^image 'image', scaled to {side} x {side} pixels, is too small for {name}, "
            "whose map would have no cells; raise --scales$",
        ):
            extractor(image, regions)


def failing(reason: str) -> Callable[..., Tensor]:
    def fail(*_: object, **__: object) -> Tensor:
        raise RuntimeError(reason)

    return fail


def test_what_does_not_fit_into_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
    monkeypatch.setattr(module, "interpolate", failing(reason))
    message = "^image 'image', scaled to 64 x 48 pixels, does not fit into the memory; lower"
    with pytest.raises(SettingError, match=message):
        extractor_of()(pixels_of(), regions_of(boxes_of(1)))


def test_other_errors_are_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "interpolate", failing("a fault of ours"))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        extractor_of()(pixels_of(), regions_of(boxes_of(1)))


OPTIONS: dict[str, Any] = {"precision": "fp32", "batch_size": 8}


def test_the_network_decides_which_way_it_goes() -> None:
    pooled, plain = network_of(), create_network("demo", 4, torch.Generator().manual_seed(0))
    more: dict[str, Any] = {"scales": None, "random_scales": False, "seed": 5}
    windows = extractor_for(plain, ("pool5",), CPU, OPTIONS | more)
    assert isinstance(windows, WindowExtractor)
    maps = extractor_for(pooled, ("pool5",), CPU, OPTIONS | more)
    assert isinstance(maps, MapExtractor)
    assert pooled.head is not None
    assert (maps.view, maps.geometry, maps.seed) == (pooled.head.view, (8, 7), 5)
    assert (maps.batch_size, maps.random_scales) == (8, False)
    more = {"scales": (30, 40), "random_scales": True}
    maps = extractor_for(pooled, ("fc7", "pool5"), CPU, OPTIONS | more)
    assert isinstance(maps, MapExtractor)
    assert maps.view == replace(pooled.head.view, scales=(30, 40))
    assert (maps.random_scales, maps.seed, maps.layers) == (True, 0, ("fc7", "pool5"))


def test_options_without_a_meaning_are_refused() -> None:
    plain = create_network("demo", 4)
    given: list[dict[str, Any]] = [{"scales": (480,)}, {"random_scales": True}]
    for more, flag in zip(given, ("--scales", "--random-scales"), strict=True):
        with pytest.raises(SettingError, match=f"^{flag} is for networks with a pyramid"):
            extractor_for(plain, ("pool5",), CPU, OPTIONS | more)
    for layer in ("conv1", "conv5"):
        told = f"'{layer}' is a map of the whole image in a network with a pyramid; regions have "
        with pytest.raises(SettingError, match=f"{told}pool5, fc6, fc7, logits$"):
            extractor_for(network_of(), ("pool5", layer), CPU, OPTIONS)


@pytest.mark.parametrize("batch_size", [4, 256])
def test_layers_behind_the_pyramid_can_be_made_from_it_later(batch_size: int) -> None:
    network = network_of()
    expected = extractor_of(network)(pixels_of(), regions_of())
    pooled = expected["pool5"].float()
    found = layers_behind(network, LAYERS, pooled, "fp32", batch_size)
    assert list(found) == list(LAYERS)
    for layer in LAYERS:
        assert found[layer].dtype == torch.float16
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-2, atol=2e-3)
    none = layers_behind(network, ("fc7",), pooled[:0], "fp32", batch_size)
    assert none["fc7"].shape == (0, 16)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_the_cpu() -> None:
    expected = extractor_of()(pixels_of(), regions_of())
    extractor = replace(extractor_of(network_of().cuda()), device=torch.device("cuda"))
    found = extractor(pixels_of(), regions_of())
    assert torch.equal(found["cells"].cpu(), expected["cells"])
    for layer in LAYERS:
        torch.testing.assert_close(found[layer].cpu(), expected[layer], rtol=1e-2, atol=1e-2)
