"""From a window to cells and back, and what of the pyramid is drawn."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from rcnnpipe.datasets.records import Record
from rcnnpipe.extraction.maps import MapExtractor
from rcnnpipe.extraction.regions import Regions
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.map_view import MapView
from rcnnpipe.models.projection import MapGeometry, geometry_of
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.report.mapping import Mapper, Window, bins_along, box_of, place_of
from rcnnpipe.report.mapping_panels import _cells_with_bins, _lanes, draw_mapping
from rcnnpipe.report.mapping_show import _spread
from tests.training.made import record_of

ZF5 = MapGeometry(16, 21.0)
LEVELS = (1, 2, 3, 6)
VIEW = MapView((40, 64, 96), 56, "nearest-area", "authors")
BOXES = ((0.0, 0.0, 90.0, 50.0), (10.5, 2.0, 52.0, 49.0), (50.0, 30.0, 62.0, 38.0))


@pytest.mark.parametrize(
    ("cells", "min_side", "scale", "box"),
    [
        # Cell 0 is centred on pixel 21, whose middle is at 20.5, and reaches 8 to each side.
        ((0, 0, 0, 0), 224, 224, (12.5, 12.5, 28.5, 28.5)),
        # Cell 12 is centred 12 * 16 further on: 212.5 + 8.
        ((0, 3, 12, 12), 224, 224, (12.5, 60.5, 220.5, 220.5)),
        # The sheet's 12,9,33,31 of 688 for the box 100,80,294,274 on 500 x 375, counted from 0:
        # x1 = (21 + 16 * 10.5 - 1) / (687 / 374) + .5, and so on.
        ((11, 8, 32, 30), 375, 688, (102.846, 76.715, 294.474, 277.053)),
    ],
)
def test_what_cells_stand_for(
    cells: tuple[int, int, int, int], min_side: int, scale: int, box: tuple[float, ...]
) -> None:
    x1, y1, x2, y2 = cells
    found = box_of((x1, y1, x2 + 1, y2 + 1), ZF5, min_side, scale)
    assert found == pytest.approx(box, abs=1e-3)


@pytest.mark.parametrize(("min_side", "scale"), [(375, 688), (375, 375), (1, 50), (30, 1)])
def test_there_and_back(min_side: int, scale: int) -> None:
    box = (100.0, 80.25, 294.0, 274.5)
    assert box_of(place_of(box, ZF5, min_side, scale), ZF5, min_side, scale) == pytest.approx(box)


@pytest.mark.parametrize(
    ("cells", "level", "bins"),
    [  # the facts sheet, section 4, ends there exclusive
        (13, 6, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12)]),
        (13, 2, [(0, 6), (6, 12)]),
        (4, 6, [(0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (3, 3)]),
        (2, 6, [(0, 0)] * 3 + [(1, 1)] * 3),
    ],
)
def test_bins(cells: int, level: int, bins: list[tuple[int, int]]) -> None:
    assert bins_along(cells, level) == bins


def test_bins_in_one_lane_share_no_cell() -> None:
    assert _lanes(bins_along(13, 6)) == [0, 1, 0, 1, 0, 1]
    assert _lanes(bins_along(12, 6)) == [0] * 6
    assert _lanes(bins_along(2, 6)) == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("shape", [(13, 13), (1, 30), (2, 2), (1, 1)])
def test_every_bin_shows(shape: tuple[int, int]) -> None:
    """Nine bins have nine colours, however many cells they share."""
    image = np.asarray(_cells_with_bins(np.zeros(shape, np.float32), 3, (60 / shape[1], 60), 1.0))
    colours = np.unique(image.reshape(-1, 3), axis=0)
    assert len(colours[np.ptp(colours, axis=1) > 0]) == 9


def test_windows_are_well_apart_in_size() -> None:
    sides = np.array([10, 100, 95, 30, 33, 11, 90], np.float32)
    boxes = np.stack((sides * 0, sides * 0, sides, sides), axis=1)
    assert _spread(boxes, 3) == [1, 4, 0]  # 33 is nearest to the root of 100 * 10
    assert _spread(boxes, 1) == [1]
    assert sorted(_spread(boxes, 20)) == list(range(7))
    assert len(set(_spread(np.repeat(boxes[:1], 5, axis=0), 3))) == 3


@pytest.fixture(scope="module")
def extractor() -> MapExtractor:
    network = create_network(
        *("demo", 3, torch.Generator().manual_seed(0)),
        head=head_for("demo", Pyramid(LEVELS), hidden=8),
    )
    return MapExtractor(
        *(network, ["pool5"], torch.device("cpu"), VIEW, geometry_of(network, "conv5"))
    )


def record_and_pixels() -> tuple[Record, npt.NDArray[np.uint8]]:
    record = record_of(size=(50, 90))
    random = np.random.default_rng(0)
    return record, random.integers(0, 255, (50, 90, 3), np.uint8)


def mapper_of(extractor: MapExtractor) -> Mapper:
    @torch.inference_mode()
    def map_of(record: Record, image: npt.NDArray[np.uint8], scale: int) -> torch.Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return extractor._map(pixels, scale, Regions(record, np.zeros((0, 4), np.float32)))

    return Mapper(map_of, "conv5", VIEW, extractor.geometry, LEVELS)


def test_what_is_drawn_is_what_is_extracted(extractor: MapExtractor) -> None:
    record, pixels = record_and_pixels()
    mapped = mapper_of(extractor)(record, pixels, [Window(box, "") for box in BOXES])
    features = extractor(pixels, Regions(record, np.array(BOXES, np.float32)))
    assert [one.scale for one in mapped] == [VIEW.scales[i] for i in features["scale"].tolist()]
    assert len({one.scale for one in mapped}) == 3
    assert [list(one.cells) for one in mapped] == features["cells"].tolist()
    for one, vector in zip(mapped, features["pool5"].float().numpy(), strict=True):
        start = 0
        for level, maxima in zip(LEVELS, one.maxima, strict=True):
            length = one.channels * level**2
            of_level = vector[start : start + length].reshape(-1, level, level)[one.channel]
            np.testing.assert_allclose(maxima, of_level, rtol=1e-3)
            start += length
            across, down = (bins_along(side, level) for side in one.values.shape[::-1])
            for y, (top, bottom) in enumerate(down):
                for x, (left, right) in enumerate(across):
                    inside = one.values[top : bottom + 1, left : right + 1]
                    assert maxima[y, x] == inside.max()


def test_the_picture_has_a_row_for_each_window(extractor: MapExtractor) -> None:
    record, pixels = record_and_pixels()
    mapper = mapper_of(extractor)
    sizes = []
    for count in (1, 3):
        windows = [Window(box, "as given") for box in BOXES[:count]]
        picture = draw_mapping(record, pixels, mapper, mapper(record, pixels, windows), 300)
        assert isinstance(picture, Image.Image)
        sizes.append(picture.size)
    # Image and map are 300 wide, each of four levels a third of that, with gaps of 6.
    assert sizes[0][0] == sizes[1][0] == 2 * 300 + 4 * 99 + 3 * 6 + 4 * 6
    assert sizes[1][1] > 3 * 167
    colours = {tuple(colour) for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}
    assert {(255, 176, 0), (0, 194, 255)} <= colours  # windows and cells
