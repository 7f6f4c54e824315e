"""``rcnnpipe show --model``: how a network with a pyramid maps windows, from the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from rcnnpipe.artifacts.model import write_model
from rcnnpipe.cli import main
from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import PyramidHead, head_for
from tests import artifacts_made as made

IDS = ("4", "5", "6")
WIDTH = 2 * 128 + 2 * 42 + 2 + 4 * 6  # image and map; levels, a third each; gaps
SMALL = ("--scales", "56", "--size", "128")


def make_network(path: Path, head: PyramidHead | None) -> None:
    network = create_network("demo", 3, torch.Generator().manual_seed(0), head=head)
    write_model(path, made.header("model"), network.settings(), network.tensors())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapping")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number, (height, width) in zip(IDS, made.SIZES.tolist(), strict=True):
        pixels = random.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    made.make_proposals(folder / "p.h5", image_ids=IDS)
    make_network(folder / "m.h5", head_for("demo", Pyramid((1, 3)), hidden=8))
    make_network(folder / "windows.h5", None)
    return folder


def show(folder: Path, *arguments: str | Path) -> Result:
    places = [str(folder / a) if a in ("images", "p.h5", "m.h5", "windows.h5") else str(a)
              for a in arguments]  # fmt: skip
    return CliRunner().invoke(main, ["show", *places])


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_picture_for_each_image(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mapped"
    found = show(folder, "images", "--model", "m.h5", "--proposals", "p.h5", "--out", out, *SMALL)
    assert found.exit_code == 0, found.output
    assert found.stdout == ""
    assert sorted(path.name for path in out.iterdir()) == ["4.png", "5.png", "6.png"]
    # 160 x 120 pixels: image and map are 128 wide, and rows at least 96 high.
    width, height = size_of(out / "4.png")
    assert width >= WIDTH
    assert height > 3 * 96
    assert size_of(out / "5.png")[1] < height  # without proposals: the whole image


def test_as_many_windows_as_are_asked_for(folder: Path, tmp_path: Path) -> None:
    heights = []
    for arguments in (
        ("--windows", "1"), ("--window", "10,20,60.5,70"),
        ("--windows", "2"), ("--window", "0,0,160,120", "--window", "1,1,5,5"),
    ):  # fmt: skip
        out = tmp_path / "one.png"
        found = show(
            *(folder, "images", "--images", "4", "--model", "m.h5", "--proposals", "p.h5"),
            *("--out", out, *SMALL, *arguments),
        )
        assert found.exit_code == 0, found.output
        heights.append(size_of(out)[1])
    assert min(heights[2:]) > 1.8 * max(heights[:2])
    assert max(heights[:2]) < 1.2 * min(heights[:2])


def test_one_image_and_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        image = folder / "images" / "6.png"
        found = show(folder, image, "--model", "m.h5", "--out", tmp_path / name, *SMALL)
        assert found.exit_code == 0, found.output
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "windows.h5"), "rcnnpipe pretrain --pyramid 1,2,3,6 makes"),
        (("--model", "p.h5"), "rcnnpipe.model/1 is needed here"),
        (("--model", "none.h5"), "does not exist"),
        (("--model", "m.h5", "--window", "0,0,161,50"), "image '4', which is 160 x 120 pixels"),
        (("--model", "m.h5", "--window", "-1,0,10,10"), "leaves image"),
        (("--model", "m.h5", "--scales", "4"), "is too small for demo"),
        (("--model", "m.h5", "--window", "0,0,9,9", "--windows", "2"), "leave one out"),
        (("--model", "m.h5", "--kind", "truth"), "--kind has no meaning with --model"),
        (("--model", "m.h5", "--detections", "p.h5"), "--detections has no meaning"),
        (("--model", "m.h5", "--threshold", "0"), "--threshold has no meaning"),
        (("--scales", "56"), "has no meaning without --model, a network with a pyramid"),
        (("--windows", "2"), "has no meaning without --model, a network with a pyramid"),
        (("--window", "0,0,9,9"), "has no meaning without --model, a network with a pyramid"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    found = show(folder, "images", "--images", "4", *arguments, "--out", tmp_path / "out")
    assert found.exit_code == 1, found.output
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "window", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,1,4", "1,4,3,2", "1,2,nan,4", "1,2,inf,4"]
)
def test_what_is_no_window_is_wrong_usage(folder: Path, window: str) -> None:
    found = show(folder, "images", "--model", "m.h5", "--window", window)
    assert found.exit_code == 2
    assert f"'{window}' is no window; give x1,y1,x2,y2 in pixels" in found.stderr
