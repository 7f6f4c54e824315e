"""``rcnnpipe inspect`` from the command line."""

import json
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner, Result

from rcnnpipe.cli import main
from tests import artifacts_made as made


def inspect(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


@pytest.mark.parametrize("kind", made.MAKERS)
def test_text_and_json(kind: str, tmp_path: Path) -> None:
    path = made.MAKERS[kind](tmp_path / "made.h5")
    words = inspect(path)
    assert words.exit_code == 0, words.output
    assert f"rcnnpipe.{kind}/1" in words.stdout
    plain = inspect(path, "--json")
    assert json.loads(plain.stdout)["schema"] == f"rcnnpipe.{kind}/1"


def test_first_rows(tmp_path: Path) -> None:
    path = made.make_proposals(tmp_path / "p.h5")
    assert len(json.loads(inspect(path, "--json", "--rows", "3").stdout)["first_rows"]) == 3
    assert json.loads(inspect(path, "--json", "--rows", "0").stdout)["first_rows"] == []


def test_two_files(tmp_path: Path) -> None:
    first = made.make_proposals(tmp_path / "a.h5")
    second = made.make_proposals(tmp_path / "b.h5", seed=1)
    assert "largest difference" in inspect(first, second).stdout
    assert json.loads(inspect(first, second, "--json").stdout)["same_bytes"] is False
    assert inspect(first, first).stdout.strip().endswith("same bytes")


def test_what_is_no_artifact_is_told_in_one_sentence(tmp_path: Path) -> None:
    path = made.make_features(tmp_path / "features.h5")
    whole = path.read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with h5py.File(path, "r+") as file:
        del file["boxes"]
    for name, words in {
        "cut.h5": "is cut off",
        "text.h5": "is no HDF5 file",
        "foreign.h5": "no artifact of rcnnpipe",
        "missing.h5": "does not exist",
        "features.h5": "is damaged",
    }.items():
        for arguments in ([name], [name, "--json"], [name, name]):
            found = inspect(*[tmp_path / a if a.endswith(".h5") else a for a in arguments])
            if name == "features.h5" and arguments == [name, name]:
                continue  # copies are equal, whatever they hold
            assert found.exit_code == 1, found.output
            assert found.stdout == ""
            assert words in found.stderr
            assert len(found.stderr.strip().splitlines()) == 1
            assert found.stderr.startswith("Error: ")
