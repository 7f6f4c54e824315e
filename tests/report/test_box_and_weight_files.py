"""Proposals and weights in plain files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.errors import SettingError
from rcnnpipe.proposals.boxfiles import read_box_file
from rcnnpipe.ragged import rows_of
from rcnnpipe.report.box_files import write_json, write_npz
from rcnnpipe.report.weight_files import write_safetensors
from tests import artifacts_made as made


def test_npz_holds_the_columns(tmp_path: Path) -> None:
    proposals = read_proposals(made.make_proposals(tmp_path / "p.h5"))
    write_npz(tmp_path / "p.npz", proposals)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert tuple(file["image_ids"]) == proposals.image_ids
        for name in ("offsets", "boxes", "scores"):
            np.testing.assert_array_equal(file[name], getattr(proposals, name), strict=True)
    before = (tmp_path / "p.npz").read_bytes()
    write_npz(tmp_path / "p.npz", proposals)
    assert (tmp_path / "p.npz").read_bytes() == before


def test_json_holds_boxes_by_image(tmp_path: Path) -> None:
    ids = ('quoted "id"', "empty", "ümlaut/sub")
    proposals = read_proposals(made.make_proposals(tmp_path / "p.h5", image_ids=ids))
    write_json(tmp_path / "p.json", proposals)
    entries = json.loads((tmp_path / "p.json").read_text())
    assert tuple(entries) == ids
    assert entries["empty"] == []
    rows = np.concatenate([np.reshape(entries[image_id], (-1, 5)) for image_id in ids])
    np.testing.assert_array_equal(rows[:, :4].astype(np.float32), proposals.boxes)
    np.testing.assert_array_equal(rows[:, 4].astype(np.float32), proposals.scores)


@pytest.mark.parametrize("write", [write_npz, write_json])
def test_both_can_be_taken_in_again(write: Any, tmp_path: Path) -> None:
    proposals = read_proposals(made.make_proposals(tmp_path / "p.h5"))
    path = tmp_path / ("p.npz" if write is write_npz else "p.json")
    write(path, proposals)
    found = read_box_file(path)
    assert tuple(found.by_name) == proposals.image_ids
    for number, values in enumerate(found.by_name.values()):
        rows = rows_of(proposals.offsets, number)
        np.testing.assert_array_equal(values[:, :4].astype(np.float32), proposals.boxes[rows])
        if len(values):
            np.testing.assert_array_equal(values[:, 4].astype(np.float32), proposals.scores[rows])


def test_no_image_at_all(tmp_path: Path) -> None:
    path = made.make_proposals(
        tmp_path / "p.h5", image_ids=(), sizes=np.zeros((0, 2), np.int64), counts=()
    )
    write_json(tmp_path / "p.json", read_proposals(path))
    assert json.loads((tmp_path / "p.json").read_text()) == {}


def test_safetensors_hold_tensors_and_architecture(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = read_model(made.make_model(tmp_path / "m.h5"))
    assert write_safetensors(tmp_path / "m.safetensors", model) == 4
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        about = json.loads(file.metadata()["rcnnpipe"])
        assert about["architecture"] == model.architecture
        assert about["classes"] == list(made.CLASSES)
        assert set(file.keys()) == set(model.tensors)
        for name, values in model.tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), values, strict=True)


_WRITE = """
import sys
from pathlib import Path
from rcnnpipe.artifacts.model import read_model
from rcnnpipe.report.weight_files import write_safetensors
write_safetensors(Path(sys.argv[2]), read_model(Path(sys.argv[1])))
"""


def test_safetensors_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    path = made.make_model(tmp_path / "m.h5")
    for number in range(2):
        out = tmp_path / f"{number}.safetensors"
        subprocess.run([sys.executable, "-c", _WRITE, path, out], check=True)
    first, second = ((tmp_path / f"{number}.safetensors").read_bytes() for number in range(2))
    assert first == second


def test_without_the_package_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    model = read_model(made.make_model(tmp_path / "m.h5"))
    with pytest.raises(SettingError, match=r"pip install 'rcnnpipe\[safetensors\]'"):
        write_safetensors(tmp_path / "m.safetensors", model)
    assert not (tmp_path / "m.safetensors").exists()
