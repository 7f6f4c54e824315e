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
    seen: list[bool] = []
    original = Network.forward

    def watched(self: Network, images: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        found = original(self, images, *arguments, **named)
        seen.extend(
            value.is_contiguous()
            for value in found.values()
            if value.ndim == 4 and value.device.type == "cpu" and min(value.shape[1:]) > 1
        )
        return found

    monkeypatch.setattr(Network, "forward", watched)
    last, first = tmp_path / "last.h5", tmp_path / "first.h5"
    # The gradients' norm is so small that what rounding does to the draws of regions stays away.
    words = ("--iterations", 1, "--clip", 0.01)
    run(folder, last, system, *words)
    orders = set(seen)
    seen.clear()
    run(folder, first, system, *words, FIRST)
    if system != "rcnn":  # whose logits are no maps
        assert (orders, set(seen)) == ({False}, {True})
    one, two = made.tensors_of(last), made.tensors_of(first)
    assert one.keys() == two.keys()
    for name, values in one.items():
        torch.testing.assert_close(
            torch.as_tensor(two[name]), torch.as_tensor(values), rtol=1e-4, atol=1e-6
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
