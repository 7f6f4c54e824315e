"""Anchors: every row of the sheets, torchvision's, a slow reference, and their order."""

import json

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from rcnnpipe.errors import SettingError
from rcnnpipe.models.anchors import Anchors, build_anchors
from tests.reference import rpn as slow

FASTER = Anchors(((128, 256, 512),))
PYRAMID = Anchors(((32,), (64,), (128,), (256,), (512,)))
STRIDES = (4, 8, 16, 32, 64)


def continuous(*boxes: tuple[float, ...]) -> list[list[float]]:
    """The authors' inclusive corners, counted from 0, in the project's convention."""
    return [[x1, y1, x2 + 1, y2 + 1] for x1, y1, x2, y2 in boxes]


def test_the_nine_anchors_are_the_sheets() -> None:
    # Faster R-CNN sheet, section 2: ratio by ratio, in each the scales 8, 16 and 32
    expected = continuous(
        *((-84, -40, 99, 55), (-176, -88, 191, 103), (-360, -184, 375, 199)),
        *((-56, -56, 71, 71), (-120, -120, 135, 135), (-248, -248, 263, 263)),
        *((-36, -80, 51, 95), (-80, -168, 95, 183), (-168, -344, 183, 359)),
    )
    found = FASTER.base(0, 16)
    assert found.dtype == torch.float32
    assert found.tolist() == expected
    assert FASTER.per_cell == 9
    # About the middle of the cell, whose inclusive 7.5 is 8 here, and not from 8 in whole numbers.
    assert (found[:, :2] + found[:, 2:] == 16).all()


# Feature pyramid sheet, section 2: level, the ratios .5, 1 and 2
LEVELS = [
    ((-22, -10, 25, 13), (-14, -14, 17, 17), (-10, -22, 13, 25)),
    ((-40, -20, 47, 27), (-28, -28, 35, 35), (-20, -44, 27, 51)),
    ((-84, -40, 99, 55), (-56, -56, 71, 71), (-36, -80, 51, 95)),
    ((-164, -72, 195, 103), (-112, -112, 143, 143), (-76, -168, 107, 199)),
    ((-332, -152, 395, 215), (-224, -224, 287, 287), (-148, -328, 211, 391)),
]


@pytest.mark.parametrize("level", range(5))
def test_the_anchors_of_a_pyramid_are_the_sheets(level: int) -> None:
    assert PYRAMID.per_cell == 3
    assert PYRAMID.base(level, STRIDES[level]).tolist() == continuous(*LEVELS[level])


def test_torchvisions_anchors_are_the_sheets() -> None:
    anchors = Anchors(((32,),), placement="torchvision")
    expected = [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert anchors.base(0, 4).tolist() == expected
    assert anchors.base(0, 16).tolist() == expected  # whatever the stride


@pytest.mark.parametrize("stride", [2, 4, 8, 10, 16, 32, 64])
def test_authors_anchors_equal_the_slow_reference(stride: int) -> None:
    sizes, ratios = (stride * 4, 77, 200.5), (0.3, 0.5, 1, 1.7, 2, 3)
    expected = continuous(*map(tuple, slow.authors_base(stride, sizes, ratios)))
    torch.testing.assert_close(Anchors((sizes,), ratios).base(0, stride), torch.tensor(expected))


@pytest.mark.parametrize(
    "sizes", [((128, 256, 512),), ((32,), (64,), (128,), (256,), (512,)), ((33, 7.5), (41, 90))]
)
def test_equals_torchvisions_generator(sizes: tuple[tuple[float, ...], ...]) -> None:
    ratios = (0.5, 1.0, 2.0)
    maps = [(9 >> level, 13 >> level) for level in range(len(sizes))]
    maps = [(max(height, 1), max(width, 1)) for height, width in maps]
    image = (150, 214)
    theirs = AnchorGenerator(sizes, (ratios,) * len(sizes))(
        ImageList(torch.zeros(1, 3, *image), [image]), [torch.zeros(1, 1, *one) for one in maps]
    )
    strides = [(image[0] // height, image[1] // width) for height, width in maps]
    ours = Anchors(sizes, ratios, "torchvision").boxes(maps, strides)
    assert [len(one) for one in ours] == [
        height * width * len(sizes[0]) * 3 for height, width in maps
    ]
    assert torch.equal(torch.cat(ours), theirs[0])


def test_all_anchors_equal_the_slow_reference() -> None:
    anchors = Anchors(((32, 48), (64, 96)))
    found = anchors.boxes([(3, 5), (2, 3)], [(8, 8), (16, 16)])
    for level, (size, stride) in enumerate((((3, 5), 8), ((2, 3), 16))):
        base = anchors.base(level, stride).tolist()
        assert found[level].tolist() == slow.all_anchors(base, size, (stride, stride))


def test_order_is_row_cell_anchor() -> None:
    height, width = 38, 63
    (found,) = FASTER.boxes([(height, width)], [(16, 16)])
    assert found.shape == (21546, 4)  # sheet, section 1
    base = FASTER.base(0, 16)
    for y, x, anchor in ((0, 0, 5), (0, 1, 0), (1, 0, 8), (37, 62, 3)):
        shift = torch.tensor([x, y, x, y]) * 16
        assert torch.equal(found[(y * width + x) * 9 + anchor], base[anchor] + shift)


def test_a_pyramid_has_as_many_as_the_sheet_says() -> None:
    maps = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
    found = PYRAMID.boxes(maps, [(stride, stride) for stride in STRIDES])
    assert [len(one) for one in found] == [201600, 50400, 12600, 3150, 819]


def test_strides_down_and_across_are_not_mixed_up() -> None:
    anchors = Anchors(((16,),), (1.0,), "torchvision")
    (found,) = anchors.boxes([(2, 3)], [(10, 7)])
    assert found[:, 0].tolist() == [-8, -1, 6] * 2
    assert found[:, 1].tolist() == [-8] * 3 + [2] * 3
    with pytest.raises(SettingError, match="strides of 10 down and 7 across has no anchors"):
        Anchors(((16,),)).boxes([(2, 3)], [(10, 7)])


def test_maps_without_cells_have_no_anchors() -> None:
    (found,) = FASTER.boxes([(0, 5)], [(16, 16)])
    assert found.shape == (0, 4)


def test_each_map_has_sizes_and_a_stride() -> None:
    with pytest.raises(ValueError, match="zip"):
        PYRAMID.boxes([(2, 2)], [(4, 4)])


def test_settings_round_trip() -> None:
    for anchors in (FASTER, PYRAMID, Anchors(((10.5, 20),), (1.0,), "torchvision", True)):
        assert build_anchors(json.loads(json.dumps(anchors.settings()))) == anchors


def test_nonsense_is_refused() -> None:
    for levels, shapes in (((), (1.0,)), (((),), (1.0,)), (((32.0,),), ())):
        with pytest.raises(SettingError, match="need at least one map, one side and one ratio"):
            Anchors(levels, shapes)
    # Sheet, section 9: one level of five sizes is not five levels of one.
    with pytest.raises(SettingError, match="give each as many sides"):
        Anchors(((32,), (64, 128)))
    for size, ratio in ((0.0, 1.0), (32.0, -1.0), (float("nan"), 1.0), (32.0, float("inf"))):
        with pytest.raises(SettingError, match="not all > 0"):
            Anchors(((size,),), (ratio,))
    with pytest.raises(SettingError, match="'middle' is none of authors, torchvision"):
        Anchors(((32,),), placement="middle")


def test_the_authors_anchors_are_not_spread() -> None:
    with pytest.raises(SettingError, match="have the strides of their maps"):
        Anchors(((32,),), spread=True)


def test_anchors_rounded_to_nothing_are_refused() -> None:
    # Stride 1, ratio .5: 1 wide, round(.5) = 0 high.
    with pytest.raises(SettingError, match="at a stride of 1: rounding leaves some without area"):
        Anchors(((32,),)).base(0, 1)
    with pytest.raises(SettingError, match="rounding leaves some without area"):
        Anchors(((0.5,),), placement="torchvision").base(0, 4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same() -> None:
    maps, strides = [(5, 7), (3, 4)], [(8, 8), (16, 16)]
    anchors = Anchors(((32,), (64,)))
    for ours, theirs in zip(
        anchors.boxes(maps, strides), anchors.boxes(maps, strides, "cuda"), strict=True
    ):
        assert torch.equal(ours, theirs.cpu())
