"""Detectors that look at several images at once find what they find one after another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rcnnpipe.errors import SettingError
from rcnnpipe.extraction.choice import extractor_for
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions, extract, mirrored
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.rpn import ProposalRules, RpnHead
from rcnnpipe.systems import faster
from tests.detectors_made import VIEW, detector_of, neck_parts
from tests.extraction.test_detectors import OPTIONS, extractor_of
from tests.extraction.test_maps import CPU, boxes_of, pixels_of, regions_of
from tests.training.made import SIZE, record_of

WIDE, TALL = SIZE, (96, 72)
RULES = ProposalRules(before=300, keep=40, min_size=4, per_level=False)
FLIPPED = {"images": 2, "flip": True}


@pytest.mark.parametrize("parts", ["cut", "neck"])
@pytest.mark.parametrize("view", [VIEW, ImageView((30, 60, 110), 200)])
def test_given_regions(parts: str, view: ImageView) -> None:
    detector = detector_of() if parts == "cut" else detector_of(parts=neck_parts)
    extractor = extractor_of(detector, view=view)
    images = [pixels_of(seed) for seed in range(4)]
    # The second has no regions, and the third none but at one scale.
    boxes = [boxes_of(), np.empty((0, 4), np.float32), boxes_of()[1:2], boxes_of(9, seed=3)]
    todo = [regions_of(own) for own in boxes]
    together = extractor.several(images, todo)
    assert [len(one["logits"]) for one in together] == [25, 0, 1, 9]
    for found, image, own in zip(together, images, todo, strict=True):
        same(found, extractor(image, own))


@pytest.mark.parametrize("scales", [(72,), (48, 90)])
def test_regions_that_are_found(scales: tuple[int, ...]) -> None:
    detector = detector_of(parts=lambda network: faster.parts_of(network, VIEW))
    assert isinstance(detector.rpn, RpnHead)
    for module in (detector.rpn.objectness, detector.rpn.deltas):
        module.weight.data.mul_(100)  # else scores are so near that rounding changes their order
    view = ImageView(scales, 200)
    extractor = extractor_of(detector, ("logits", "deltas"), view, proposals=RULES)
    images, todo = [pixels_of(seed) for seed in range(3)], [regions_of() for _ in range(3)]
    together = extractor.several(images, todo)
    for found, image, own in zip(together, images, todo, strict=True):
        assert len(found["boxes"]) > 30 * len(scales)
        same(found, extractor(image, own))
    assert not torch.equal(together[0]["boxes"], together[1]["boxes"])


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4)


def files_of(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Regions]:
    made = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.fromarray(pixels_of(number, size)).save(path)
        boxes = np.array([(5 + number, 5, 40, 40 + number)], np.float32)
        made.append(Regions(record_of(image_id=path.stem, path=path, size=size), boxes))
    return made


def batches_seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Filled with the ids of the images that are computed at once."""
    seen: list[list[str]] = []
    original = DetectorExtractor.several

    def told(self: DetectorExtractor, images: Any, todo: Sequence[Regions]) -> Any:
        seen.append([one.record.image_id for one in todo])
        return original(self, images, todo)

    monkeypatch.setattr(DetectorExtractor, "several", told)
    return seen


def test_those_of_one_size_among_the_next_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = files_of(tmp_path, (WIDE, TALL, WIDE, WIDE, WIDE, WIDE, TALL))
    one_by_one = list(extract(extractor_of(), todo, 1))
    seen = batches_seen(monkeypatch)
    found = list(extract(extractor_of(images=4), todo, 1))
    assert seen == [["0", "2", "3"], ["1"], ["4", "5"], ["6"]]
    assert [own.record.image_id for own, _ in found] == list("0123456")
    for (_, values), (_, expected) in zip(found, one_by_one, strict=True):
        for layer, held in expected.items():
            np.testing.assert_allclose(values[layer], held, rtol=1e-4, atol=1e-4)


def test_mirrored_views_go_with_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = [view for one in files_of(tmp_path, (WIDE,) * 3) for view in (one, mirrored(one))]
    extractor = extractor_for(detector_of(), ("logits",), CPU, {**OPTIONS, **FLIPPED})
    seen = batches_seen(monkeypatch)
    assert len(list(extract(extractor, todo, 0))) == 6
    assert seen == [["0", "0@mirrored", "1", "1@mirrored"], ["2", "2@mirrored"]]
    alone = extractor_for(detector_of(), ("logits",), CPU, {**OPTIONS, **FLIPPED, "images": 1})
    assert isinstance(alone, DetectorExtractor)
    assert alone.images == 1


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("maps", "^images 'a', 'b' together, scaled to 96 x 72 pixels, do not fit into the memory"),
        ("find_regions", "^images 'a', 'b' together, .*; lower --images or --scales$"),
        ("pool", "^40 regions at once do not fit into the memory; lower --batch-size$"),
        ("behind", "^40 regions at once do not fit into the memory; lower --batch-size$"),
    ],
)
def test_a_lack_of_memory_is_told(part: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    detector = detector_of(parts=lambda network: faster.parts_of(network, VIEW))
    extractor = extractor_of(detector, ("logits",), proposals=RULES)
    monkeypatch.setattr(Detector, part, without_memory)
    todo = [regions_of(image_id=name) for name in "ab"]
    with pytest.raises(SettingError, match=told):
        extractor.several([pixels_of(), pixels_of()], todo)


def test_networks_of_windows_have_no_use_for_it() -> None:
    network = create_network("demo", 4, torch.Generator().manual_seed(0))
    with pytest.raises(SettingError, match=r"--images is for detectors; .* as --batch-size says"):
        extractor_for(network, ("fc7",), CPU, OPTIONS | {"images": 2})
