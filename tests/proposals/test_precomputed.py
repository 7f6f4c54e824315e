import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from rcnnpipe.datasets import Record
from rcnnpipe.errors import DataError
from rcnnpipe.proposals.boxfiles import read_box_file
from rcnnpipe.proposals.precomputed import BoxFormat, PrecomputedBoxes, to_continuous
from tests.realdata import DATA, needs_data

# Continuous boxes of two 100 x 80 images; the file formats below must all give these.
BOXES = {
    "a": np.array([[10.0, 5, 60, 45], [0, 0, 100, 80]]),
    "b": np.array([[1.0, 2, 30, 40]]),
}
MATLAB = BoxFormat("y1x1y2x2", origin=1, inclusive=True)


def record(name: str, size: tuple[int, int] = (80, 100)) -> Record:
    return Record(
        image_id=name,
        path=Path(f"images/{name}.jpg"),
        size=size,
        boxes=np.empty((0, 4)),
        labels=np.empty(0, np.int64),
        difficult=np.empty(0, bool),
        truncated=np.empty(0, bool),
        crowd=np.empty(0, bool),
        areas=np.empty(0),
    )


def matlab_rows(boxes: np.ndarray) -> np.ndarray:
    """As van de Sande's code stores them: y1 x1 y2 x2, 1-based, last pixel inside."""
    rows: np.ndarray = (boxes + np.array([1, 1, 0, 0]))[:, [1, 0, 3, 2]]
    return rows


def cells(values: Sequence[object]) -> np.ndarray:
    cell = np.empty((1, len(values)), object)
    cell[0, :] = values
    return cell


def write_mat(path: Path, suffix: str = "") -> BoxFormat:
    rows = [matlab_rows(boxes) for boxes in BOXES.values()]
    savemat(path, {"boxes": cells(rows), "images": cells([name + suffix for name in BOXES])})
    return MATLAB


def write_mat_73(path: Path) -> BoxFormat:
    with h5py.File(path, "w", userblock_size=512) as file:
        for variable, values in (
            ("boxes", [matlab_rows(boxes).T for boxes in BOXES.values()]),
            ("images", [np.array([[ord(name)]], np.uint16) for name in BOXES]),
        ):
            stored = [file.create_dataset(f"#refs#/{variable}{i}", data=v)
                      for i, v in enumerate(values)]  # fmt: skip
            references = np.array([[one.ref] for one in stored], h5py.ref_dtype)
            file.create_dataset(variable, data=references)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(128))
    return MATLAB


def write_json(path: Path) -> BoxFormat:
    path.write_text(json.dumps({name: boxes.tolist() for name, boxes in BOXES.items()}))
    return BoxFormat()


def write_coco(path: Path) -> BoxFormat:
    results = [
        {"image_id": name, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1 - i / 10}
        for name, boxes in BOXES.items()
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())
    ]
    path.write_text(json.dumps(results[::-1]))
    return MATLAB  # not looked at: COCO's format is fixed


def write_npz(path: Path) -> BoxFormat:
    np.savez_compressed(path, a=BOXES["a"] - [0, 0, 1, 1], b=BOXES["b"] - [0, 0, 1, 1])
    return BoxFormat(inclusive=True)


def write_flat_npz(path: Path) -> BoxFormat:
    boxes = np.concatenate(list(BOXES.values()))
    boxes[:, 2:] -= boxes[:, :2]
    np.savez(path, boxes=boxes, offsets=[0, 2, 3], image_ids=["a", "b"], scores=[0.5, 0.25, 0.9])
    return BoxFormat("xywh")


WRITERS = {
    "old.mat": write_mat,
    "new.mat": write_mat_73,
    "map.json": write_json,
    "coco.json": write_coco,
    "each.npz": write_npz,
    "flat.npz": write_flat_npz,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_boxes(tmp_path: Path, name: str) -> None:
    form = WRITERS[name](tmp_path / name)
    boxes = PrecomputedBoxes(tmp_path / name, form)
    boxes.check((record("a"), record("b")))
    for image, expected in BOXES.items():
        found = boxes.propose(record(image), min_size=0)
        np.testing.assert_array_equal(found.boxes, expected)
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert (np.diff(found.scores) < 0).all()


def test_images_are_found_by_file_name_too(tmp_path: Path) -> None:
    write_mat(tmp_path / "boxes.mat", suffix=".jpg")
    PrecomputedBoxes(tmp_path / "boxes.mat", MATLAB).check((record("a"), record("b")))


@pytest.mark.parametrize("name", ["a.mat", "a_boxes.mat", "a.npz"])
def test_a_folder_of_one_file_each(tmp_path: Path, name: str) -> None:
    if name.endswith(".mat"):
        savemat(tmp_path / name, {"boxes": matlab_rows(BOXES["a"])})
    else:
        np.savez(tmp_path / name, boxes=matlab_rows(BOXES["a"]))
    boxes = PrecomputedBoxes(tmp_path, MATLAB)
    np.testing.assert_array_equal(boxes.propose(record("a"), min_size=0).boxes, BOXES["a"])
    first = boxes.digest((record("a"),))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" ")
    assert boxes.digest((record("a"),)) != first
    with pytest.raises(DataError, match="no boxes for 1 of 2 images, first 'b'"):
        boxes.check((record("a"), record("b")))


def test_scores_order_boxes_and_repeats_small_and_surplus_ones_go(tmp_path: Path) -> None:
    rows = [[0, 0, 30, 30, 0.1], [0, 0, 40, 30, 0.9], [0, 0, 30, 30, 0.5], [0, 0, 10, 30, 1.0]]
    (tmp_path / "b.json").write_text(json.dumps({"a": rows, "b": []}))
    boxes = PrecomputedBoxes(tmp_path / "b.json", BoxFormat())
    found = boxes.propose(record("a"))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 40, 30], [0, 0, 30, 30]])
    np.testing.assert_allclose(found.scores, [0.9, 0.5])
    assert len(boxes.propose(record("a"), max_boxes=1).boxes) == 1
    assert boxes.propose(record("b")).boxes.shape == (0, 4)


@pytest.mark.parametrize("columns", ["x1y1x2y2", "y1x1y2x2", "xywh"])
@pytest.mark.parametrize("origin", [0, 1])
@pytest.mark.parametrize("inclusive", [False, True])
def test_conventions(columns: str, origin: int, inclusive: bool) -> None:
    # The box that covers pixels 3..6 across and 10..19 down, counted from 0.
    x1, y1, x2, y2 = (value + origin for value in (3, 10, 7 - inclusive, 20 - inclusive))
    values = {"x1y1x2y2": (x1, y1, x2, y2), "y1x1y2x2": (y1, x1, y2, x2), "xywh": (x1, y1, 4, 10)}
    form = BoxFormat(columns, origin, inclusive)  # type: ignore[arg-type]
    found = to_continuous(np.array([values[columns]], float), form)
    assert found.tolist() == [[3, 10, 7, 20]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": [[0, 0, 30]]}, r"image 'a' in .*: boxes of shape \(1, 3\)"),
        ({"a": [[0, 0, 30, 30], [0, 0, 30]]}, "image 'a' in .*not rows of 4 or 5 numbers"),
        ({"a": "nothing"}, "image 'a' in .*not rows of 4 or 5 numbers"),
        ({"a": [[0, 0, float("nan"), 30]]}, "image 'a' in .*not a finite number"),
        ({"a": [[30, 0, 30, 30]]}, "box 1, 30, 0, 30, 30 .* has no area; check --columns"),
        ({"a": [[0, 0, 9, 9], [0, 0, 30, 90]]}, "box 2, .* leaves the 100 x 80 image; check --col"),
        ({"a": [[-3, 0, 30, 30]]}, "box 1, .* leaves the 100 x 80 image"),
        ([{"bbox": [0, 0, 1, 1]}], "entry 0 has no image_id and bbox"),
        (3, "neither a mapping of images nor a list"),
    ],
)
def test_faults_in_json_are_told(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        PrecomputedBoxes(path, BoxFormat()).propose(record("a"))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    faults = {
        "absent.mat": (None, "does not exist"),
        "boxes.csv": (b"1,2", "is no box file; one of .mat, .json, .npz"),
        "a.mat": (b"MATLAB 5.0 but not really", "cannot be read as .mat"),
        "b.mat": (b"MATLAB 7.3 but not really", "cannot be read as .mat"),
        "a.json": (b"{", "cannot be read as .json"),
        "a.npz": (b"PK no", "cannot be read as .npz"),
    }
    for name, (content, words) in faults.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            PrecomputedBoxes(tmp_path / name, BoxFormat())
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_matlab_files_of_another_kind_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    savemat(path, {"rois": np.ones((2, 4))})
    with pytest.raises(DataError, match=r"no variable 'boxes' \(it holds rois\)"):
        read_box_file(path)
    savemat(path, {"boxes": cells([np.ones((2, 4))])})
    with pytest.raises(DataError, match="no 'images'"):
        read_box_file(path)
    savemat(path, {"boxes": cells([np.ones((2, 4))]), "images": cells(["a", "b"])})
    with pytest.raises(DataError, match="2 images, but boxes of 1"):
        read_box_file(path)
    savemat(path, {"boxes": np.ones((2, 4))})
    with pytest.raises(DataError, match="one image without its name"):
        PrecomputedBoxes(path, BoxFormat())


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "boxes.npz"
    np.savez(path, a=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        read_box_file(path)


def test_false_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 4)}
    )
    path = tmp_path / "boxes.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(DataError, match="claims more than the file holds"):
        read_box_file(path)


@needs_data
def test_published_matlab_boxes_are_read() -> None:
    form = BoxFormat("x1y1x2y2", origin=0, inclusive=True)
    boxes = PrecomputedBoxes(DATA / "ss_reference", form)
    found = boxes.propose(record("000004", (406, 500)), min_size=0, max_boxes=5000)
    assert len(found.boxes) == 2888
    np.testing.assert_array_equal(found.boxes.max(axis=0)[2:], [500, 406])
