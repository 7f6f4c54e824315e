import io
import pickle
import struct
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from rcnnpipe.artifacts.model import write_model
from rcnnpipe.artifacts.store import make_header
from rcnnpipe.errors import ArtifactError, DataError, SettingError
from rcnnpipe.images import read_image
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.preprocessing import preset
from rcnnpipe.models.warp import Crop, warp
from rcnnpipe.models.weights import has_folded_statistics, load_network, load_weights
from tests.realdata import DATA, needs_data


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def demo() -> Network:
    return create_network("demo", 4, generator(1))


def save_npz(path: Path, tensors: dict[str, Tensor], dtype: str = "float32") -> None:
    np.savez_compressed(path, **{k: v.numpy().astype(dtype) for k, v in tensors.items()})  # type: ignore[arg-type]


def written(folder: Path, demo: Network, suffix: str) -> Path:
    path, tensors = folder / f"w{suffix}", demo.state_dict()
    if suffix == ".npz":
        save_npz(path, tensors)
    elif suffix == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    elif suffix == ".h5":
        classes = ("background", "a", "b", "c")
        header = make_header("model", stage="t", version=1, settings={}, inputs={}, classes=classes)
        write_model(path, header, demo.settings(), demo.tensors())
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt", ".h5"])
def test_every_kind_of_file_gives_the_same_network(
    tmp_path: Path, demo: Network, suffix: str
) -> None:
    network = load_network("demo", written(tmp_path, demo, suffix), generator(9))
    assert network.outputs == 4
    assert network.settings() == demo.settings()
    for key, value in demo.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".h5"])
def test_a_file_cut_off_is_one_sentence(tmp_path: Path, demo: Network, suffix: str) -> None:
    path = written(tmp_path, demo, suffix)
    content = path.read_bytes()
    for length in (0, 7, len(content) // 2, len(content) - 40):
        path.write_bytes(content[:length])
        with pytest.raises((DataError, ArtifactError), match=path.name):
            load_network("demo", path, generator())


def test_half_precision_becomes_single(tmp_path: Path, demo: Network) -> None:
    save_npz(tmp_path / "w.npz", demo.state_dict(), "float16")
    network = load_network("demo", tmp_path / "w.npz", generator())
    weight = network.state_dict()["fc8.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, demo.state_dict()["fc8.weight"].half().float())


def test_own_model_brings_its_window_and_preprocessing(tmp_path: Path) -> None:
    demo = create_network("demo", 4, generator(), crop=Crop(40, 2), preprocessing=preset("caffe"))
    path = written(tmp_path, demo, ".h5")
    network = load_network(None, path, generator())
    assert network.crop == Crop(40, 2)
    assert network.preprocessing.settings() == preset("caffe").settings()
    assert load_network(None, path, generator(), crop=Crop(48, 3)).crop == Crop(48, 3)
    with pytest.raises(SettingError, match="holds a demo, not a alexnet"):
        load_network("alexnet", path, generator())


def test_initial_values_without_weights() -> None:
    first = load_network("demo", None, generator(3))
    second = load_network("demo", "none", generator(3))
    assert first.outputs == 1000
    assert torch.equal(first.state_dict()["conv1.weight"], second.state_dict()["conv1.weight"])
    with pytest.raises(SettingError, match="name a network: alexnet"):
        load_network(None, None, generator())


def test_files_that_do_not_fit(tmp_path: Path, demo: Network) -> None:
    path = tmp_path / "w.npz"
    tensors = dict(demo.state_dict())
    save_npz(path, {k: v for k, v in tensors.items() if "fc" not in k} | {"extra": torch.ones(2)})
    with pytest.raises(
        DataError, match=r"lacks fc6.bias, fc6.weight, fc7.bias and 3 more; .*extra"
    ):
        load_network("demo", path, generator())
    save_npz(path, tensors | {"fc7.weight": torch.ones(256, 9)})
    with pytest.raises(DataError, match=r"fc7.weight is \(256, 9\), not \(256, 256\)"):
        load_network("demo", path, generator())
    save_npz(path, tensors | {"fc7.bias": torch.full((256,), float("nan"))})
    with pytest.raises(DataError, match="not finite in fc7"):
        load_network("demo", path, generator())
    save_npz(path, tensors)
    with pytest.raises(DataError, match=r"fc8.weight is \(4, 256\), not \(9, 256\)"):
        load_weights(create_network("demo", 9), path)
    with pytest.raises(DataError, match="no such file"):
        load_network("demo", tmp_path / "absent.pth", generator())


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("/dev/null",)


def test_no_code_is_run_from_a_file(tmp_path: Path, demo: Network) -> None:
    path = tmp_path / "w.pth"
    torch.save({"conv1.weight": Trap()}, path)
    with pytest.raises(DataError, match="holds more than tensors"):
        load_network("demo", path, generator())
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="holds no state_dict"):
        load_network("demo", path, generator())
    np.savez(tmp_path / "w.npz", a=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="holds object, no numbers"):
        load_network("demo", tmp_path / "w.npz", generator())
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"conv1.weight": 1}))
    with pytest.raises(DataError, match=r"x\.pth"):
        load_network("demo", tmp_path / "x.pth", generator())


def test_false_sizes_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conv1.weight.npy", header.getvalue() + b"\0" * 16)
    with pytest.raises(DataError, match=r"claims \d+ bytes but holds"):
        load_network("demo", path, generator())
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(DataError, match="no safetensors file, or damaged"):
        load_network("demo", tmp_path / "w.safetensors", generator())


def test_names_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = create_network("squeezenet", 1000, generator(4)).state_dict()
    kinds = torchvision.models.SqueezeNet1_0_Weights
    monkeypatch.setattr(kinds, "get_state_dict", lambda self, **_: tensors)
    for name in ("torchvision", "IMAGENET1K_V1"):
        network = load_network("squeezenet", name, generator())
        assert torch.equal(
            network.state_dict()["classifier.1.weight"], tensors["classifier.1.weight"]
        )
    with pytest.raises(SettingError, match="torchvision, IMAGENET1K_V1"):
        load_network("squeezenet", "IMAGENET1K_V7", generator())
    with pytest.raises(SettingError, match="torchvision has no demo"):
        load_network("demo", "torchvision", generator())

    def offline(self: object, **_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(kinds, "get_state_dict", offline)
    with pytest.raises(DataError, match=r"could not be fetched from https.*no route to host"):
        load_network("squeezenet", "torchvision", generator())


def test_folded_batch_norms_are_frozen(tmp_path: Path) -> None:
    resnet = create_network("resnet18", 3, generator())
    tensors = {k: v for k, v in resnet.state_dict().items() if "num_batches" not in k}
    torch.save(tensors, tmp_path / "folded.pth")
    folded = load_network("resnet18", tmp_path / "folded.pth", generator())
    assert folded.frozen_batch_norm
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    tensors["layer1.0.bn1.running_var"] = torch.full((64,), 2.0)
    torch.save(tensors, tmp_path / "live.pth")
    live = load_network("resnet18", tmp_path / "live.pth", generator())
    assert not live.frozen_batch_norm
    assert not has_folded_statistics(live)
    assert not has_folded_statistics(create_network("demo"))


PHOTOGRAPHS = {  # image, box, what it shows
    "000000281789.jpg": ((75.27, 100.04, 354.44, 324.51), {"zebra"}),
    "000000121647.jpg": ((0.0, 237.8, 480.0, 634.07), {"pizza"}),
    "000000221184.jpg": ((7.51, 27.18, 640.0, 403.82), {"airliner", "warplane", "wing"}),
}


@needs_data
@pytest.mark.parametrize(
    ("name", "file"), [("squeezenet", "squeezenet1_0_dc"), ("resnet18", "resnet18_pqf")]
)
def test_given_imagenet_weights_name_what_photographs_show(name: str, file: str) -> None:
    path = DATA / "imagenet_weights" / f"{file}.npz"
    network = load_network(name, path, generator())
    assert network.frozen_batch_norm == (name == "resnet18")
    kinds = {
        "squeezenet": torchvision.models.squeezenet1_0,
        "resnet18": torchvision.models.resnet18,
    }
    theirs = kinds[name]().eval()
    arrays = np.load(path, allow_pickle=False)
    values = {key: torch.from_numpy(arrays[key]).float() for key in arrays.files}
    assert not theirs.load_state_dict(values, strict=False).unexpected_keys
    categories = torchvision.models.SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"]
    for image, (box, names) in PHOTOGRAPHS.items():
        pixels = torch.from_numpy(read_image(DATA / "coco_multi" / "images" / image))
        windows = warp(
            pixels.permute(2, 0, 1), torch.tensor([box]), network.crop, network.preprocessing
        )
        with torch.inference_mode():
            logits = network.logits(windows)
            torch.testing.assert_close(logits, theirs(windows), atol=1e-3, rtol=1e-4)
        best = {categories[int(label)] for label in logits[0].topk(5).indices}
        assert best & names, best
