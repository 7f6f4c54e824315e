"""``rcnnpipe import`` and the way back, ``rcnnpipe export --format torchvision``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors import safe_open

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.foreign import foreign_file
from rcnnpipe.artifacts.model import read_model
from rcnnpipe.class_names import class_names
from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.export.agreement import differences
from rcnnpipe.models.weights import read_model_of_regions
from tests import artifacts_made as made
from tests.stages.made import run
from tests.torchvision_made import random_detector, random_mobile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("import")
    torch.save(random_detector("resnet18", 4, seed=3).state_dict(), root / "w.pth")
    (root / "names.txt").write_text("red kite\nblue\ngreen\n\n")
    return root


def bring(
    folder: Path, *words: object, file: str = "w.pth", out: str = "m.h5", **how: bool
) -> Result:
    place = ("--network", "resnet18", "--out", folder / out)
    return run("import", folder / file, *place, *words, **how)


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    result = bring(folder, "--classes", folder / "names.txt")
    assert result.stdout == ""
    assert "3 classes" in result.stderr
    return folder / "m.h5"


def test_the_header_says_where_it_comes_from(folder: Path, model: Path) -> None:
    header = read_model(model).header
    assert header.classes == ("background", "red kite", "blue", "green")
    assert header.inputs == {"weights": foreign_file(folder / "w.pth").id}
    assert header.settings == {"network": "resnet18", "format": "torchvision", "epsilon": 1e-5}
    assert "stage" not in header.settings
    run("inspect", model)


def same_tensors(first: Path, second: Path) -> None:
    found, expected = read_model(first).tensors, read_model(second).tensors
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def test_another_kind_of_file_gives_the_same(folder: Path, model: Path) -> None:
    tensors = torch.load(folder / "w.pth", weights_only=True)
    np.savez(folder / "w.npz", **{key: value.numpy() for key, value in tensors.items()})
    bring(folder, "--classes", "a,b,c", file="w.npz", out="other.h5")
    same_tensors(folder / "other.h5", model)


def test_the_same_twice_is_the_same_bytes(folder: Path, model: Path) -> None:
    bring(folder, "--classes", folder / "names.txt", out="again.h5")
    assert (folder / "again.h5").read_bytes() == model.read_bytes()


def test_detections_are_torchvisions(folder: Path, model: Path) -> None:
    """Through the files, at torchvision's own sizes: here 200 x 1333 pixels."""
    random = np.random.default_rng(1)
    small = random.integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(small).resize((400, 60)).save(folder / "one.png")
    words = ("--score-threshold", 0.05, "--nms-overlap", 0.5, "--max-per-image", 0)
    more = ("--max-per-set", 0, "--max-detections", 100, "--device", "cpu")
    out = folder / "d.h5"
    run("detect", folder / "one.png", "--model", model, *words, *more, "--out", out)
    found = read_detections(out)
    ours = {name: getattr(found, name) for name in ("boxes", "scores", "labels")}
    theirs = random_detector("resnet18", 4, seed=3)
    pixels = torch.from_numpy(np.array(Image.open(folder / "one.png"))).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (expected,) = theirs([pixels])
    values = {name: value.numpy() for name, value in expected.items()}
    assert len(values["scores"]) == 100
    box, score, alone = differences(ours, values)
    assert (box < 1e-3, score < 3e-5) == (True, True)
    assert alone == 0


def test_the_way_back(folder: Path, model: Path) -> None:
    out = folder / "back.safetensors"
    run("export", model, "--format", "torchvision", "--out", out)
    with safe_open(out, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        about = json.loads(file.metadata()["rcnnpipe"])
    theirs = random_detector("resnet18", 4, seed=8, loud=False)
    theirs.load_state_dict(tensors)
    expected = torch.load(folder / "w.pth", weights_only=True)
    for key, value in tensors.items():
        assert torch.equal(value, expected[key]), key
    assert about["classes"] == ["background", "red kite", "blue", "green"]
    assert about["torchvision"]["backbone_name"] == "resnet18"
    assert about["torchvision"]["min_size"] == 800
    bring(folder, "--classes", "a,b,c", file=out.name, out="third.h5")
    same_tensors(folder / "third.h5", model)


def test_mobilenet_and_back(folder: Path) -> None:
    """Its size is not in the file, so the network's name tells."""
    theirs, name = random_mobile(loud=False), "mobilenet_v3_large_320"
    torch.save(theirs.state_dict(), folder / "other.pth")
    words = ("--network", name, "--classes", "a,b,c", "--out", folder / "other.h5")
    run("import", folder / "other.pth", *words)
    assert read_model(folder / "other.h5").header.settings["network"] == name
    out = folder / "other.safetensors"
    run("export", folder / "other.h5", "--format", "torchvision", "--out", out)
    with safe_open(out, framework="pt") as file:
        theirs.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
        about = json.loads(file.metadata()["rcnnpipe"])["torchvision"]
    names = ("min_size", "rpn_pre_nms_top_n_test", "rpn_score_thresh")
    assert tuple(about[name] for name in names) == (320, 150, 0.05)


def test_networks_alone_are_no_detectors(folder: Path) -> None:
    made.make_model(folder / "plain.h5")
    out = folder / "no.safetensors"
    result = run("export", folder / "plain.h5", "--format", "torchvision", "--out", out, fails=True)
    assert "--format torchvision is for detectors with a feature pyramid" in result.stderr
    assert not out.exists()


def test_epsilon(folder: Path, model: Path) -> None:
    bring(folder, "--classes", "a,b,c", "--epsilon", "0.1", out="e.h5")
    header, found = read_model_of_regions(folder / "e.h5")
    _, usual = read_model_of_regions(model)
    assert header.settings["epsilon"] == 0.1
    norm = "network.bn1"
    ours, before = found.state_dict(), usual.state_dict()
    scale = before[f"{norm}.weight"] * (before[f"{norm}.running_var"] + 0.1).rsqrt()
    now = ours[f"{norm}.weight"] * (ours[f"{norm}.running_var"] + 1e-5).rsqrt()
    torch.testing.assert_close(now, scale)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--classes", "a,b"), "tells 4 classes apart, the background with them, so --classes"),
        (("--classes", "a,b,a"), "names the class a twice"),
        (("--classes", "a,,b"), "has an empty name among the classes"),
        (("--classes", "background,a,b"), "names the background"),
        (("--classes", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--classes", "coco"), "takes 3 names, not 90"),
        (("--classes", "a,b,c", "--network", "resnet50"), "does not fit torchvision's detector on"),
        (("--classes", "a,b,c", "--network", "mobilenet_v3_large"), "is on no MobileNet"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, words: tuple[str, ...], told: str) -> None:
    result = bring(folder, *words, out="never.h5", fails=True)
    assert result.exit_code == 1
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (folder / "never.h5").exists()


def test_bad_files_are_one_sentence(folder: Path, model: Path) -> None:
    (folder / "text.pth").write_text("no tensors")
    for file, told in {
        "none.pth": "does not exist",
        "text.pth": "text.pth",
        "names.txt": "is no file of tensors; give one of",
        "m.h5": "is no file of tensors; give one of",
    }.items():
        result = bring(folder, "--classes", "a,b,c", file=file, out="never.h5", fails=True)
        assert result.exit_code == 1
        assert told in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_classes_are_needed(folder: Path) -> None:
    result = bring(folder, fails=True)
    assert result.exit_code == 2
    assert "Missing option '--classes'" in result.stderr


def test_names_of_coco() -> None:
    names = class_names("coco")
    assert len(names) == len(set(names)) == 90
    assert (names[0], names[11], names[89]) == ("person", "unused-12", "toothbrush")
    assert sum(name.startswith("unused-") for name in names) == 10


def test_names_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xff\n")
    with pytest.raises(DataError, match="is no text file with a class in each line"):
        class_names(str(tmp_path / "latin.txt"))
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(SettingError, match="has an empty name"):
        class_names(str(tmp_path / "none.txt"))
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    with pytest.raises(SettingError, match="has an empty name"):
        class_names(str(tmp_path / "gap.txt"))
    assert class_names("a, b c") == ("a", "b c")
