"""Fetching VOC, with torchvision's download replaced: no test needs a network."""

from pathlib import Path
from urllib.error import URLError

import pytest

from rcnnpipe.datasets import open_dataset, voc_download
from rcnnpipe.errors import DataError
from tests.datasets.build import voc, voc_object, voc_xml


def test_a_recipe_lies_beside_what_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []

    def fetch(root: Path, year: str, image_set: str, download: bool) -> None:
        parts.append(image_set)
        if image_set == "trainval":
            xml = {"000001": voc_xml(voc_object("sofa", (1, 2, 9, 9)))}
            lists = {name: ["000001"] for name in ("train", "val", "trainval", "test")}
            voc(root / "VOCdevkit" / f"VOC{year}", xml, **lists)

    monkeypatch.setattr(voc_download, "VOCDetection", fetch)
    recipe = voc_download.fetch_voc(tmp_path / "voc", "2007")
    dataset = open_dataset(recipe, "test")
    assert parts == ["trainval", "test"]
    assert len(dataset.classes) == 21
    assert dataset.classes[dataset.records[0].labels[0]] == "sofa"
    assert voc_download.fetch_voc(tmp_path / "voc", "2007") == recipe
    assert parts == ["trainval", "test"]  # complete: not fetched again


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("File not found or corrupted.")]
)
def test_no_network_or_a_wrong_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fetch(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(voc_download, "VOCDetection", fetch)
    with pytest.raises(DataError, match="VOC2012 trainval cannot be fetched"):
        voc_download.fetch_voc(tmp_path / "voc", "2012")
    assert not (tmp_path / "voc" / "voc2012.yaml").exists()
