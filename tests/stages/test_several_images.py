"""Stages that look at several images at once: the same rows, also after they were stopped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from rcnnpipe.artifacts.detections import read_detections
from rcnnpipe.artifacts.features import open_features
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.artifacts.rows import RowWriter
from rcnnpipe.extraction.detectors import DetectorExtractor
from rcnnpipe.extraction.regions import Regions
from tests.stages.faster_made import EVERY, Chain, make_chain
from tests.stages.made import ON_CPU, open_header, run, run_by_two_ranks


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return make_chain(tmp_path_factory.mktemp("several"))


def detecting(chain: Chain, *more: object) -> Callable[..., Result]:
    given = ("--model", chain.faster, "--proposals", chain.proposals)
    return lambda out, **how: chain.detect(out, *given, *EVERY, *more, **how)


def proposing(chain: Chain, *more: object) -> Callable[..., Result]:
    return lambda out, **how: chain.propose(chain.rpn, out, "--min-size", 6, *more, **how)


def extracting(chain: Chain, *more: object) -> Callable[..., Result]:
    given = ("--model", chain.faster, "--proposals", chain.proposals, "--layers", "fc7", *ON_CPU)
    words = ("extract-features", *chain.data, *given, *more)
    return lambda out, **how: run(*words, "--out", out, **how)


STAGES = {"detect": detecting, "propose": proposing, "extract-features": extracting}


@pytest.mark.parametrize("flip", [(), ("--flip",)])
def test_detections_are_the_same(flip: tuple[str, ...], chain: Chain, tmp_path: Path) -> None:
    out, usual = tmp_path / "d.h5", tmp_path / "usual.h5"
    detecting(chain, *flip)(usual)
    detecting(chain, *flip, "--images", 3)(out)
    one, two = read_detections(usual), read_detections(out)
    assert one.offsets.tolist() == two.offsets.tolist()
    assert np.diff(one.offsets).tolist() == [2 * 10 * (1 + len(flip))] * 8
    np.testing.assert_allclose(np.sort(one.scores), np.sort(two.scores), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.sort(one.boxes, 0), np.sort(two.boxes, 0), atol=1e-3)


def test_proposals_and_features_are_the_same(chain: Chain, tmp_path: Path) -> None:
    out, usual = tmp_path / "o.h5", tmp_path / "usual.h5"
    extracting(chain)(usual)
    extracting(chain, "--images", 8)(out)
    with open_features(usual) as one, open_features(out) as two:
        np.testing.assert_array_equal(one.boxes, two.boxes)
        every = slice(0, len(one.boxes))
        np.testing.assert_allclose(
            one.rows("fc7", every), two.rows("fc7", every), rtol=2e-3, atol=1e-3
        )
    proposing(chain, "--images", 3)(out)
    # A hardly trained RPN's scores are near to each other: their order may change.
    found, again = read_proposals(chain.found), read_proposals(out)
    np.testing.assert_allclose(np.diff(found.offsets), np.diff(again.offsets), atol=3)
    np.testing.assert_allclose(found.scores[:8], again.scores[:8], rtol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_recorded_where_it_is_asked_for(stage: str, chain: Chain, tmp_path: Path) -> None:
    for more, recorded in ((("--images", 1), None), (("--images", 2), 2)):
        STAGES[stage](chain, *more)(tmp_path / "o.h5")
        assert open_header(tmp_path / "o.h5").settings.get("images") == recorded


@contextmanager
def stopped_behind(images: int) -> Iterator[None]:
    """Whatever writes rows meanwhile is stopped when it has those of so many images."""
    append = RowWriter.append

    def stopping(self: RowWriter, rows: Any) -> None:
        if self.done == images:
            raise KeyboardInterrupt
        append(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowWriter, "append", stopping)
        yield


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("done", [0, 2, 3, 7])
def test_what_was_stopped_goes_on(
    done: int, stage: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.h5", tmp_path / "stopped.h5"
    work = STAGES[stage](chain, "--images", 3)
    work(whole)
    with stopped_behind(done):
        assert "goes on from what it has saved" in work(out, fails=True).output
    seen: list[int] = []
    several = DetectorExtractor.several

    def counted(self: DetectorExtractor, images: Any, todo: Sequence[Regions]) -> Any:
        seen.append(len(todo))
        return several(self, images, todo)

    monkeypatch.setattr(DetectorExtractor, "several", counted)
    work(out)
    # The batch that it was stopped in is computed once more, so that it is the same batch.
    assert seen == [3, 3, 2][done // 3 :]
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_ranks_make_the_same_batches(chain: Chain, tmp_path: Path) -> None:
    given = ("detect", *chain.data, "--model", chain.faster, "--proposals", chain.proposals)
    words = (*given, *EVERY, *ON_CPU, "--images", 3, "--out")
    whole, two, both = (tmp_path / f"{name}.h5" for name in ("whole", "two", "both"))
    run(*words, whole)
    run_by_two_ranks(*words, two)
    assert two.read_bytes() == whole.read_bytes()
    # Begun by one process and finished by two
    with stopped_behind(4):
        run(*words, both, fails=True)
    run_by_two_ranks(*words, both)
    assert both.read_bytes() == whole.read_bytes()
