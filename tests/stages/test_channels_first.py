"""finetune --channels-first: another order of maps in memory, the same model but for rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rcnnpipe.datasets import open_dataset
from rcnnpipe.models.backbones import Network
from tests.stages import made
from tests.stages.test_finetune import coco_of
from tests.stages.test_finetune_options import run
from tests.training.made import write_proposals

FIRST = "--channels-first"
SYSTEMS = ["rcnn", "fast", "faster", "fpn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channels")
    dataset = open_dataset(coco_of(folder / "data", 4), "train")
    write_proposals(folder / "proposals.h5", dataset)
    return folder


@pytest.mark.parametrize("system", SYSTEMS)
def test_only_rounding_differs(
    system: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[torch.memory_format, bool]] = set()
    original = Network.forward

    def watched(self: Network, images: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if images.device.type == "cpu":  # others ask for sizes alone
            weight = next(self.parameters())
            seen.add((self.memory_format, weight.is_contiguous()))
        return original(self, images, *arguments, **named)

    monkeypatch.setattr(Network, "forward", watched)
    last, first = tmp_path / "last.h5", tmp_path / "first.h5"
    words = ("--iterations", 1, "--clip", 0.01)  # a step so small that rounding stays rounding
    run(folder, last, system, *words)
    assert seen == {(torch.channels_last, False)}
    seen.clear()
    run(folder, first, system, *words, FIRST)
    assert seen == {(torch.contiguous_format, True)}
    one, two = made.tensors_of(last), made.tensors_of(first)
    assert one.keys() == two.keys()
    for name, values in one.items():
        torch.testing.assert_close(
            torch.as_tensor(two[name]), torch.as_tensor(values), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("system", ["rcnn", "faster"])
def test_it_is_recorded_where_asked_for_and_resumed(
    system: str, folder: Path, tmp_path: Path
) -> None:
    plain, first, out = (tmp_path / f"{name}.h5" for name in ("plain", "first", "stopped"))
    run(folder, plain, system)
    run(folder, first, system, FIRST)
    assert made.open_header(first).settings == {
        **made.open_header(plain).settings,
        "channels-last": False,
    }
    with made.stopped_after(4):
        run(folder, out, system, FIRST, fails=True)
    assert "going on after iteration 3" in run(folder, out, system, FIRST).stderr
    assert out.read_bytes() == first.read_bytes()
