"""compress from a model to a smaller one: what it holds, tells and refuses, and what takes it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import Result

from rcnnpipe.artifacts.model import read_model, write_model
from rcnnpipe.artifacts.store import make_header, open_artifact
from rcnnpipe.datasets import open_dataset
from rcnnpipe.errors import SettingError
from rcnnpipe.models import svd_ranks
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.detector import Detector, build_detector
from rcnnpipe.models.image_view import ImageView
from rcnnpipe.models.parts import Parts
from rcnnpipe.models.region_cut import usual_cut
from rcnnpipe.models.region_pooling import RegionPooling
from rcnnpipe.models.weights import read_model_of_regions, read_network
from tests.artifacts_made import make_features, make_proposals
from tests.detectors_made import detector_of, neck_parts
from tests.robustness.pipeline import run
from tests.robustness.refusal import sentence
from tests.stages.made import ON_CPU
from tests.stages.test_finetune import coco_of
from tests.training.made import CLASSES, write_proposals

RANKS = ("--layers", "fc6:20,fc7:12")


def ran(*words: object, code: int = 0) -> Result:
    result = run(*words)
    assert result.exit_code == code, result.output or repr(result.exception)
    return result


def network_of(classes: Sequence[str], seed: int = 0) -> Network:
    network = create_network("demo", len(classes), torch.Generator().manual_seed(seed))
    with torch.no_grad():  # probabilities that differ, so that there are scores to lose
        network.classifier_module.weight.mul_(30)
    return network


def write(path: Path, network: Network | Detector, classes: Sequence[str]) -> Path:
    header = make_header("model", stage="x", version=1, settings={}, inputs={}, classes=classes)
    write_model(path, header, network.settings(), network.tensors())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, its proposals, and networks with weights that nobody trained."""
    folder = tmp_path_factory.mktemp("compress")
    write_proposals(folder / "p.h5", open_dataset(coco_of(folder / "data", 6), "train"))
    write(folder / "m.h5", network_of(CLASSES), CLASSES)
    write(folder / "other.h5", network_of(("background", "a", "b")), ("background", "a", "b"))
    write(folder / "more.h5", network_of((*CLASSES, "x", "y")), CLASSES)
    squeezenet = create_network("squeezenet", 3, torch.Generator().manual_seed(0))
    write(folder / "squeezenet.h5", squeezenet, CLASSES)
    return folder


def data_of(folder: Path) -> tuple[object, ...]:
    return ("--data", folder / "data", "--split", "train", "--proposals", folder / "p.h5")


def test_it_writes_a_model_with_two_layers_for_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "c.h5"
    result = ran("compress", folder / "m.h5", *RANKS, "--out", out, *ON_CPU)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(f"wrote {out} (2 layers, ")
    before, after = read_model(folder / "m.h5"), read_model(out)
    assert after.header.classes == CLASSES
    assert after.header.settings == {"ranks": {"fc6": 20, "fc7": 12}}
    assert after.header.inputs == {"model": before.header.id}
    assert after.architecture == before.architecture | {"compressed": {"fc6": 20, "fc7": 12}}
    shapes = {name: values.shape for name, values in after.tensors.items() if name[:2] == "fc"}
    assert shapes == {
        "fc6.0.weight": (20, 864),
        "fc6.1.weight": (256, 20),
        "fc6.1.bias": (256,),
        "fc7.0.weight": (12, 256),
        "fc7.1.weight": (256, 12),
        "fc7.1.bias": (256,),
        "fc8.weight": (3, 256),
        "fc8.bias": (3,),
    }
    _, expected = read_network(folder / "m.h5")
    for path, rank in after.architecture["compressed"].items():
        expected.compress(path, rank)
    _, network = read_network(out)
    windows = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(network.logits(windows), expected.logits(windows))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["c.h5"]


def test_the_figures(folder: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "c.h5", *ON_CPU)
    result = ran("compress", folder / "m.h5", *RANKS, "--json", *out)
    told = json.loads(result.stdout)
    assert told.keys() == {"layers"}
    fc6 = told["layers"]["fc6"]
    assert (fc6["size"], fc6["rank"]) == ([256, 864], 20)
    assert (fc6["weights_before"], fc6["weights_after"]) == (256 * 864, 20 * (256 + 864))
    assert 0 < fc6["energy"] < 1
    assert fc6["error"] == pytest.approx((1 - fc6["energy"]) ** 0.5)
    assert fc6["milliseconds_before"] > 0
    assert fc6["milliseconds_after"] > 0
    titles, *rows = (line.split() for line in result.stderr.splitlines() if line[:2] == "  ")
    assert titles[:4] == ["layer", "size", "rank", "energy"]
    assert [row[0] for row in rows] == ["fc6", "fc7"]
    assert rows[0][1:5] == ["256", "x", "864", "20"]


def test_energy(folder: Path, tmp_path: Path) -> None:
    words = (folder / "m.h5", "--layers", "fc6,fc7:9", "--energy", 0.4, "--json")
    told = json.loads(ran("compress", *words, "--out", tmp_path / "c.h5", *ON_CPU).stdout)["layers"]
    assert told["fc7"]["rank"] == 9
    fc6 = read_model(folder / "m.h5").tensors["fc6.weight"]
    values = torch.linalg.svdvals(torch.from_numpy(fc6).double())
    rank = told["fc6"]["rank"]
    assert told["fc6"]["energy"] == pytest.approx(svd_ranks.kept_energy(values, rank))
    assert svd_ranks.kept_energy(values, rank - 1) < 0.4 <= told["fc6"]["energy"]
    same = ("--layers", f"fc6:{rank},fc7:9", "--out", tmp_path / "d.h5", *ON_CPU)
    ran("compress", folder / "m.h5", *same)
    assert (tmp_path / "c.h5").read_bytes() == (tmp_path / "d.h5").read_bytes()


def test_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_weights(size: tuple[int, int], rank: int | None, device: torch.device) -> float:
        return float(svd_ranks.weights_of(size, rank))

    monkeypatch.setattr(svd_ranks, "seconds_for", as_weights)
    words = (folder / "m.h5", "--layers", "fc6,fc7:9", "--time", 0.5, "--json")
    told = json.loads(ran("compress", *words, "--out", tmp_path / "c.h5", *ON_CPU).stdout)["layers"]
    assert told["fc7"]["rank"] == 9
    assert told["fc6"]["rank"] == pytest.approx(0.5 * 256 * 864 / (256 + 864), abs=4)
    assert told["fc6"]["milliseconds_after"] <= 0.5 * told["fc6"]["milliseconds_before"]
    settings = read_model(tmp_path / "c.h5").header.settings
    assert settings == {"ranks": {"fc6": told["fc6"]["rank"], "fc7": 9}}


def test_equal_runs_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one.h5", "two.h5"):
        ran("compress", folder / "m.h5", *RANKS, "--out", tmp_path / name, *ON_CPU)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_precision_before_and_after_is_what_detect_and_evaluate_find(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.h5"
    result = ran(
        *("compress", folder / "m.h5", *RANKS, "--json", *data_of(folder), "--out", out, *ON_CPU)
    )
    told = json.loads(result.stdout)
    assert told["before"] != told["after"]
    found = detected(folder, tmp_path, folder / "m.h5"), detected(folder, tmp_path, out)
    assert found == (told["before"], told["after"])
    lines = [line.split() for line in result.stderr.splitlines()]
    assert ["before", "after"] in lines
    shown = {line[0] for line in lines if len(line) == 3}
    assert {"ap", "ap50", "voc_map_11_point", "voc_map_area"} <= shown
    plain = tmp_path / "plain.h5"
    ran("compress", folder / "m.h5", *RANKS, "--out", plain, *ON_CPU)
    assert plain.read_bytes() == out.read_bytes()  # measuring is not part of the model


def detected(folder: Path, place: Path, model: Path) -> Any:
    data, *rest = data_of(folder)[1:]
    ran("detect", data, *rest, "--model", model, "--out", place / "d.h5", *ON_CPU)
    judged = ("--data", data, "--split", "train", "--out", place / "scores", "--json")
    return json.loads(ran("evaluate", place / "d.h5", *judged).stdout)


def test_proposals_are_found_where_none_are_given(folder: Path, tmp_path: Path) -> None:
    data = ("--data", folder / "data", "--split", "train")
    words = (folder / "m.h5", "--layers", "fc7:9", *data, "--json", "--out", tmp_path / "c.h5")
    told = json.loads(ran("compress", *words, *ON_CPU).stdout)
    assert told["before"]["detections"] > 0


def test_what_goes_on_with_a_compressed_model(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "c.h5"
    ran("compress", folder / "m.h5", *RANKS, "--out", model, *ON_CPU)
    ran("inspect", model)
    seen = (folder / "data", "--split", "train", "--proposals", folder / "p.h5", *ON_CPU)
    layers = ("--layers", "pool5,fc6,fc7")
    features, svm = tmp_path / "f.h5", tmp_path / "s.h5"
    ran("extract-features", *seen, "--model", model, *layers, "--out", features)
    ran("train-svm", features, "--layer", "fc7", "--out", svm)
    ran("detect", *seen, "--model", model, "--svm", svm, "--out", tmp_path / "d.h5")
    result = ran(
        *("detect", *seen, "--model", folder / "m.h5", "--svm", svm),
        *("--out", tmp_path / "e.h5"),
        code=1,
    )
    assert "was not made from" in result.stderr

    quick = ("--iterations", 2, "--batch-size", 8, "--foreground", 2)
    tuned = tmp_path / "t.h5"
    ran("finetune", *seen, "--init", model, *quick, "--out", tuned)
    assert read_model(tuned).architecture["compressed"] == {"fc6": 20, "fc7": 12}

    safetensors = pytest.importorskip("safetensors")
    exported = tmp_path / "c.safetensors"
    ran("export", model, "--format", "safetensors", "--out", exported)
    with safetensors.safe_open(exported, framework="np") as file:
        assert file.get_tensor("fc7.1.weight").shape == (256, 12)
        about = json.loads(file.metadata()["rcnnpipe"])
    assert about["architecture"]["compressed"] == {"fc6": 20, "fc7": 12}


def test_a_model_can_be_compressed_further_but_not_a_layer(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "c.h5", tmp_path / "d.h5"
    ran("compress", folder / "m.h5", "--layers", "fc6:20", "--out", first, *ON_CPU)
    ran("compress", first, "--layers", "fc7:12,logits:2", "--out", second, *ON_CPU)
    assert read_model(second).architecture["compressed"] == {"fc6": 20, "fc7": 12, "fc8": 2}
    with open_artifact(second) as (header, _):
        assert header.settings == {"ranks": {"fc7": 12, "logits": 2}}
    words = ("--layers", "fc6:10", "--out", tmp_path / "e.h5", *ON_CPU)
    said = refused("compress", first, *words)
    assert f"layer 'fc6' of {first} is compressed already, to rank 20" in said
    assert not (tmp_path / "e.h5").exists()


def test_a_detector(folder: Path, tmp_path: Path) -> None:
    """Of a Fast R-CNN the layers behind the pooling are compressed, its own outputs are not."""
    random = torch.Generator().manual_seed(0)
    view, pooling = ImageView((72,), 200), RegionPooling(size=3, strides=(8,))
    parts = Parts(view, pooling, cut=usual_cut("demo"))
    detector = Detector(create_network("demo", 3, random), parts, len(CLASSES))
    detector.initialise(random)
    with torch.no_grad():
        detector.class_scores.weight.mul_(30)
    model, out = write(tmp_path / "fast.h5", detector, CLASSES), tmp_path / "c.h5"
    words = (model, *RANKS, "--json", *data_of(folder), "--out", out, *ON_CPU)
    told = json.loads(ran("compress", *words).stdout)
    assert told["before"] != told["after"]
    found = detected(folder, tmp_path, model), detected(folder, tmp_path, out)
    assert found == (told["before"], told["after"])
    tensors = read_model(out).tensors
    assert tensors["network.fc6.0.weight"].shape == (20, 864)
    assert tensors["class_scores.weight"].shape == (3, 256)
    said = refused("compress", model, "--layers", "logits:2", "--out", out, *ON_CPU)
    assert "cannot be compressed; those to compress are fc6, fc7" in said


def test_a_feature_pyramid(folder: Path, tmp_path: Path) -> None:
    """Its own layers are compressed, and it is read, run and trained on with them."""
    pyramid = detector_of(parts=neck_parts, classes=len(CLASSES))
    model, out = write(tmp_path / "fpn.h5", pyramid, CLASSES), tmp_path / "c.h5"
    layers = ("--layers", "fc6:10,fc7:8", *ON_CPU)
    told = json.loads(ran("compress", model, *layers, "--json", "--out", out).stdout)
    assert told["layers"]["fc6"]["size"] == [24, 128]
    before, after = read_model(model), read_model(out)
    first, second = after.tensors["fc6.0.weight"], after.tensors["fc6.1.weight"]
    assert (first.shape, second.shape) == ((10, 128), (24, 10))
    exact = before.tensors["fc6.weight"]
    lost = np.linalg.svd(exact, compute_uv=False)[10:]
    np.testing.assert_allclose(np.linalg.norm(exact - second @ first), np.linalg.norm(lost), 1e-4)
    _, built = read_model_of_regions(out)
    assert isinstance(built, Detector)
    assert built.compressed == {"fc6": 10, "fc7": 8}
    pooled = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    hidden = torch.from_numpy(second @ first) @ pooled.flatten(1).T
    expected = (hidden.T + torch.from_numpy(after.tensors["fc6.1.bias"])).relu()
    torch.testing.assert_close(built.behind(pooled, ["fc6"])["fc6"], expected, rtol=1e-4, atol=1e-5)
    said = refused("compress", out, "--layers", "fc6:4", "--out", tmp_path / "d.h5", *ON_CPU)
    assert f"layer 'fc6' of {out} is compressed already, to rank 10" in said
    said = refused("compress", model, "--layers", "logits:2", "--out", out, *ON_CPU)
    assert "cannot be compressed; those to compress are fc6, fc7" in said


def test_a_feature_pyramid_whose_compression_is_spoilt() -> None:
    pyramid = detector_of(parts=neck_parts)
    pyramid.compress("fc6", 5)
    cases: list[tuple[Any, str]] = [
        ({"class_scores": 1}, "'class_scores'"),
        ({"fc6": 6}, r"size mismatch for fc6\.0\.weight"),
        ({}, r"fc6\.0\.weight"),
        ({"fc6": 5, "neck": 1}, "'neck'"),
        (3, "not given as a mapping"),
    ]
    for spoilt, told in cases:
        with pytest.raises(SettingError, match=told):
            build_detector(pyramid.settings() | {"compressed": spoilt}, pyramid.tensors())


def refused(*words: Any, code: int = 1) -> str:
    return sentence(run(*words), code)


# Words after the model -> what is said of them
WRONG = {
    "--layers conv1:3": "layer 'conv1' of {model} cannot be compressed; those to compress are "
    "fc6, fc7, logits",
    "--layers pool5:3": "layer 'pool5' of {model} cannot be compressed",
    "--layers fc9:3": "layer 'fc9' of {model} does not exist",
    "--layers fc6:198": "rank 198 saves no weights of layer 'fc6', which has 256 x 864; the "
    "largest rank that does is 197",
    "--layers fc6": "there is no rank for fc6; write fc6:RANK, or give --energy or --time",
    "--layers fc6 --energy 0.5 --time 0.5": "two ways to choose a rank",
    "--layers fc6:3 --energy 0.5": "--energy has no meaning when every layer of --layers",
    "--layers fc6:3 --time 0.5": "--time has no meaning when every layer of --layers",
    "--layers fc7 --energy 0.9999": "takes rank 24",
    "--layers fc6:3 --split train": "--split has no meaning without --data",
    "--layers fc6:3 --proposals p.h5": "--proposals has no meaning without --data",
    "--layers fc6:3 --data {data} --split bare": "has no annotated objects",
    "--layers fc6:3 --data {data} --split nowhere": "nowhere",
    "--layers fc6:3 --data {data} --split train --proposals {place}/none.h5": "does not exist",
    "--layers fc6:3 --data {data} --split train --proposals {place}/p.h5": "image",
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_are_told_and_harm_nothing(folder: Path, tmp_path: Path, words: str) -> None:
    model, out = folder / "m.h5", tmp_path / "c.h5"
    make_proposals(tmp_path / "p.h5")
    ran("compress", model, "--layers", "fc7:3", "--out", out, *ON_CPU)
    before = out.read_bytes()
    given = words.format(data=folder / "data", place=tmp_path).split()
    said = refused("compress", model, *given, "--out", out, *ON_CPU)
    assert WRONG[words].format(model=model) in said
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.h5", "p.h5"]


@pytest.mark.parametrize(
    "layers", ["fc6:", "fc6:0", "fc6:-1", "fc6:x", ":5", "fc6:1:2", "fc6:3,fc6:4", "fc6:3,,"]
)
def test_wrong_usage(folder: Path, tmp_path: Path, layers: str) -> None:
    out = ("--out", tmp_path / "c.h5")
    assert "--layers" in refused("compress", folder / "m.h5", "--layers", layers, *out, code=2)
    for share in ("0", "1", "nan"):
        energy = ("--layers", "fc6", "--energy", share)
        assert "--energy" in refused("compress", folder / "m.h5", *energy, *out, code=2)
    assert "--layers" in refused("compress", folder / "m.h5", *out, code=2)
    assert not any(tmp_path.iterdir())


def test_files_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "c.h5", *ON_CPU)
    data = data_of(folder)
    features = make_features(tmp_path / "f.h5")
    missing = tmp_path / "none.h5"
    assert f"{missing} does not exist" in refused("compress", missing, *RANKS, *out)
    assert "rcnnpipe.model/1 is needed" in refused("compress", features, *RANKS, *out)
    said = refused("compress", folder / "squeezenet.h5", "--layers", "logits:2", *out)
    assert "cannot be compressed; it has none to compress" in said
    said = refused("compress", folder / "other.h5", *RANKS, *data, *out)
    assert "whose classes are red, green: its classifier has classes a, b; give a model" in said
    said = refused("compress", folder / "more.h5", *RANKS, *data, *out)
    assert "its classifier has 5 outputs for 2 classes and the background" in said
    copied = tmp_path / "m.h5"
    shutil.copy(folder / "m.h5", copied)
    assert "would be lost" in refused("compress", copied, *RANKS, "--out", copied, *ON_CPU)
    assert copied.read_bytes() == (folder / "m.h5").read_bytes()
    assert not (tmp_path / "c.h5").exists()


def test_a_model_whose_compression_is_spoilt(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "c.h5"
    ran("compress", folder / "m.h5", *RANKS, "--out", model, *ON_CPU)
    architecture = read_model(model).architecture
    for spoilt in ({"fc6": 20}, {"fc6": 20, "fc7": 13}, {"fc6": 20, "fc7": "x"}, [1], {"no": 1}):
        with h5py.File(model, "r+") as file:
            file.attrs["architecture"] = json.dumps(architecture | {"compressed": spoilt})
        words = ("--layers", "logits:2", "--out", tmp_path / "d.h5", *ON_CPU)
        assert f"{model} cannot be built" in refused("compress", model, *words)
