"""finetune --box-beta and --rpn-loss: where the sources differ, the loss is a setting."""

from pathlib import Path
from typing import Any

import pytest

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.datasets import open_dataset
from rcnnpipe.models.rpn_targets import AnchorRules
from rcnnpipe.training.detecting import DetectionLoss
from tests.stages import made
from tests.stages.test_finetune import coco_of
from tests.stages.test_finetune_options import run
from tests.training.made import write_proposals

CODE, PAPER = (1 / 9, 1.0), (1.0, 256 / 240)  # beta and weight of the RPN's boxes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    write_proposals(folder / "proposals.h5", open_dataset(coco_of(folder / "data", 4), "train"))
    return folder


@pytest.mark.parametrize(
    ("system", "words", "beta", "rpn", "recorded"),
    [
        ("fast", (), 1.0, None, {}),
        ("fpn", (), 1.0, CODE, {}),
        ("fast", ("--box-beta", 0), 0.0, None, {"box-beta": 0.0}),
        ("fpn", ("--box-beta", 0.25), 0.25, CODE, {"box-beta": 0.25}),
        ("faster", ("--rpn-loss", "paper"), 1.0, PAPER, {"rpn-loss": "paper"}),
        ("rpn", ("--rpn-loss", "code"), 1.0, CODE, {}),
    ],
)
def test_the_loss_is_as_asked_and_recorded(
    system: str,
    words: tuple[object, ...],
    beta: float,
    rpn: tuple[float, float] | None,
    recorded: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: set[tuple[float, AnchorRules | None]] = set()
    original = DetectionLoss.__call__

    def watched(self: DetectionLoss, piece: Any, /) -> Any:
        used.add((self.beta, self.rpn.anchors if self.rpn else None))
        return original(self, piece)

    monkeypatch.setattr(DetectionLoss, "__call__", watched)
    run(folder, tmp_path / "m.h5", system, "--iterations", 1, *words)
    ((own, rules),) = used
    assert own == beta
    assert (rules and (rules.beta, rules.box_weight)) == rpn
    settings = read_model(tmp_path / "m.h5").header.settings
    assert {
        name: settings[name] for name in ("box-beta", "rpn-loss") if name in settings
    } == recorded


@pytest.mark.parametrize(
    ("system", "words", "flag"),
    [
        ("rpn", ("--box-beta", 1), "--box-beta"),
        ("fast", ("--rpn-loss", "paper"), "--rpn-loss"),
    ],
)
def test_without_such_a_loss_it_is_refused(
    system: str, words: tuple[object, ...], flag: str, folder: Path, tmp_path: Path
) -> None:
    result = run(folder, tmp_path / "no.h5", system, *words, fails=True)
    assert f"{flag} has no meaning with --system {system}" in made.sentence(result)
