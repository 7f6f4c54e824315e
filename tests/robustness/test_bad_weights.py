"""Files of weights and of boxes from elsewhere: never run, never trusted about their size."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.robustness.pipeline import Made, ran
from tests.robustness.refusal import Case, Cases, Spot

CASES = Cases()


class Payload:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (open, (str(self.path), "w"))


def weights(name: str, file: str, *says: str) -> Callable[[Callable[[Spot], bytes]], None]:
    """A case: pretrain --init FILE, whose bytes the decorated function makes."""

    def add(content: Callable[[Spot], bytes]) -> None:
        def words(spot: Spot) -> Sequence[object]:
            return (*spot.stage("pretrain"), "--init", spot.file(file, content(spot)))

        CASES(name, file, *says)(words)

    return add


def saved(held: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


@weights("a .pth that runs code", "w.pth", "holds more than tensors, which could run code")
def _(spot: Spot) -> bytes:
    return saved({"conv1.weight": Payload(spot.folder / "harm")})


@weights("a bare pickle that runs code", "w.pth", "holds more than tensors")
def _(spot: Spot) -> bytes:
    return pickle.dumps({"conv1.weight": Payload(spot.folder / "harm")})


@weights("a .pth that is text", "w.pth", "cannot be read as PyTorch weights")
def _(spot: Spot) -> bytes:
    return b"hello"


@weights("a .pth that is empty", "w.pth", "cannot be read as PyTorch weights")
def _(spot: Spot) -> bytes:
    return b""


@weights("a .pth cut off", "w.pth")
def _(spot: Spot) -> bytes:
    return saved({"conv1.weight": torch.zeros(32, 3, 5, 5)})[:-400]


@weights("a .pth of a list", "w.pth", "holds no state_dict")
def _(spot: Spot) -> bytes:
    return saved([torch.zeros(3)])


@weights("a .pth of other names", "w.pth", "does not fit demo", "conv1.weight")
def _(spot: Spot) -> bytes:
    return saved({"fc.weight": torch.zeros(3)})


@weights("an .npz cut off", "w.npz")
def _(spot: Spot) -> bytes:
    return npz(a=np.zeros(1000))[:-60]


@weights("an .npz that is text", "w.npz", "is no .npz of arrays")
def _(spot: Spot) -> bytes:
    return b"hello"


@weights("an .npz of objects", "w.npz", "no numbers")
def _(spot: Spot) -> bytes:
    return npz(a=np.array([Payload(spot.folder / "harm")], object))


@weights("an .npz that claims too much", "w.npz", "claims")
def _(spot: Spot) -> bytes:
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, described)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("conv1.weight.npy", header.getvalue())
    return buffer.getvalue()


@weights("a zip that unpacks without end", "w.npz", "claims")
def _(spot: Spot) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", bytes(2**26))
    return buffer.getvalue()


@weights("safetensors with a giant header", "w.safetensors", "damaged")
def _(spot: Spot) -> bytes:
    return struct.pack("<Q", 2**40) + b"{}"


@weights("safetensors that claim too much", "w.safetensors", "damaged")
def _(spot: Spot) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(64)


@weights("safetensors that are text", "w.safetensors", "damaged")
def _(spot: Spot) -> bytes:
    return b"hello, here is no header"


@weights("weights of another shape", "w.npz", "conv1.weight is (2, 2), not (32, 3, 5, 5)")
def _(spot: Spot) -> bytes:
    from rcnnpipe.artifacts.model import read_model

    tensors = dict(read_model(spot.made.pretrained).tensors)
    return npz(**tensors | {"conv1.weight": np.zeros((2, 2), np.float32)})


@weights("weights that are no numbers", "w.npz", "not finite in conv1.weight")
def _(spot: Spot) -> bytes:
    from rcnnpipe.artifacts.model import read_model

    tensors = dict(read_model(spot.made.pretrained).tensors)
    return npz(**tensors | {"conv1.weight": np.full((32, 3, 5, 5), np.nan, np.float32)})


@CASES("no such file of weights", "gone.pth")
def _(spot: Spot) -> Sequence[object]:
    return (*spot.stage("pretrain"), "--init", spot.folder / "gone.pth")


@CASES("weights with an unknown ending", "w.onnx", "is no file of weights", ".safetensors")
def _(spot: Spot) -> Sequence[object]:
    return (*spot.stage("pretrain"), "--init", spot.file("w.onnx", "x"))


@CASES("a folder for weights", "w.pth")
def _(spot: Spot) -> Sequence[object]:
    (spot.folder / "w.pth").mkdir()
    return (*spot.stage("pretrain"), "--init", spot.folder / "w.pth")


@CASES("weights of another network", "holds a demo, not a alexnet")
def _(spot: Spot) -> Sequence[object]:
    words = [*spot.stage("pretrain"), "--network", "alexnet", "--init", spot.made.pretrained]
    return words


def boxes(name: str, file: str, content: bytes, *says: str) -> None:
    """A case: propose --method precomputed --boxes FILE."""

    def words(spot: Spot) -> Sequence[object]:
        data = (spot.made.data, "--split", "test", "--method", "precomputed")
        return ("propose", *data, "--boxes", spot.file(file, content))

    CASES(name, file, *says, keeps_work=True)(words)


def as_json(boxes: object) -> bytes:
    return json.dumps({"100": boxes, "101": [], "102": []}).encode()


boxes("boxes of no image", "b.json", b"{}", "has no boxes for 3 of 3 images, first '100'")
boxes("boxes that are no JSON", "b.json", b"{")
boxes("boxes without end", "b.json", b"[" * 100_000)
boxes("boxes in a list", "b.json", b"[1, 2]")
boxes("boxes of three numbers", "b.json", as_json([[1, 2, 3]]), "100")
boxes("boxes of words", "b.json", as_json([["a", "b", "c", "d"]]), "100")
boxes("ragged boxes", "b.json", as_json([[1, 2, 3, 4], [1, 2]]), "100")
boxes("boxes that are no numbers", "b.json", b'{"100": [[1, 2, NaN, 9]], "101": [], "102": []}')
boxes("boxes inside out", "b.json", as_json([[50, 50, 20, 20]]), "100")
boxes("boxes of objects", "b.npz", npz(boxes=np.array([{}], object)))
boxes("boxes cut off", "b.npz", npz(boxes=np.zeros((99, 4)))[:-50])
boxes("boxes that are no MATLAB file", "b.mat", b"hello")
boxes("boxes of an unknown kind", "b.csv", b"1,2,3,4")


@CASES("a folder of boxes that lacks some", "'100'")
def _(spot: Spot) -> Sequence[object]:
    data = (spot.made.data, "--split", "test", "--method", "precomputed")
    return ("propose", *data, "--boxes", spot.file("boxes/x.mat", "x").parent)


def results(name: str, content: bytes, *says: str, file: str = "r.json") -> None:
    """A case: evaluate a COCO result json."""

    def words(spot: Spot) -> Sequence[object]:
        place = ("--out", spot.folder.parent / "scores")
        data = ("--data", spot.made.data, "--split", "test")
        return ("evaluate", spot.file(file, content), *data, *place)

    CASES(name, file.partition("/")[0], *says, out=None)(words)


def one(**changes: object) -> bytes:
    row = {"image_id": 100, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}
    return json.dumps([row, row | changes]).encode()


results("results that are no JSON", b"[{")
results("results without end", b"[" * 100_000)
results("results that are no list", b"{}")
results("results that are words", b'["a"]')
results("a result without a score", json.dumps([{"image_id": 100, "category_id": 1}]).encode())
results("a result of no image", one(image_id=7), "7")
results("results of no category", one(category_id=7).replace(b'_id": 1,', b'_id": 7,'), "7")
results("a result box of three", one(bbox=[1, 2, 3]), "bbox")
results("a result box of words", one(bbox=["a", 1, 2, 3]), "bbox")
results("a score that is no number", one(score=float("nan")), "score")
results("a score that is a word", one(score="high"), "score")
results("comp4 of too few columns", b"100 0.5 1 2 3\n", file="comp4/comp4_det_test_red.txt")
results("comp4 of words", b"100 high 1 2 3 4\n", file="comp4/comp4_det_test_red.txt")
results("comp4 of no class", b"100 0.5 1 2 3 4\n", file="comp4/comp4_det_test_cow.txt")
results("comp4 of no image", b"7 0.5 1 2 3 4\n", file="comp4/comp4_det_test_red.txt")
results("comp4 that is no text", b"\xff\xfe\x00", file="comp4/comp4_det_test_red.txt")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, made: Made, tmp_path: Path) -> None:
    case.check(made, tmp_path)
    assert not (tmp_path / "in" / "harm").exists()


def test_the_payload_would_make_a_file(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "harm"))).close()
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("ending", [".pth", ".npz", ".safetensors"])
def test_good_weights_are_taken(made: Made, tmp_path: Path, ending: str) -> None:
    from rcnnpipe.artifacts.model import read_model

    path, tensors = tmp_path / f"w{ending}", read_model(made.pretrained).tensors
    if ending == ".safetensors":
        ran("export", made.pretrained, "--format", "safetensors", "--out", path)
    elif ending == ".npz":
        path.write_bytes(npz(**tensors))
    else:
        path.write_bytes(saved({name: torch.from_numpy(held) for name, held in tensors.items()}))
    words = Spot(made, tmp_path).stage("pretrain")
    ran(*words, "--init", path, "--epochs", 0, "--out", tmp_path / "m.h5")
    held = read_model(tmp_path / "m.h5").tensors["conv1.weight"]
    assert np.array_equal(held, tensors["conv1.weight"])
