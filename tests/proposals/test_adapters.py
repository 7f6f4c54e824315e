from typing import Any

import numpy as np
import pytest

from rcnnpipe.errors import SettingError
from rcnnpipe.proposals import adapters
from rcnnpipe.randomness import generator
from tests.proposals.test_selective_search import check_boxes, overlap, scene

TRUTH = np.array([[15, 10, 60, 50], [70, 40, 105, 75]])


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_opencv_finds_the_objects_the_same_each_time(mode: Any) -> None:
    pytest.importorskip("cv2", reason="opencv is an optional extra")
    first, again = (
        adapters.opencv(scene(), generator(0, "test"), mode=mode, max_boxes=4000) for _ in range(2)
    )
    check_boxes(first, (80, 110))
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert overlap(first.boxes, TRUTH).min() > 0.8


def test_the_package_finds_the_objects() -> None:
    pytest.importorskip("selectivesearch", reason="selectivesearch is an optional extra")
    proposed = adapters.selectivesearch_package(scene(), generator(0, "test"), scales=(100, 300))
    check_boxes(proposed, (80, 110))
    assert overlap(proposed.boxes, TRUTH).min() > 0.9


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (adapters.opencv, r"opencv-fast needs .* pip install 'rcnnpipe\[opencv\]'"),
        (adapters.selectivesearch_package, r"pip install 'rcnnpipe\[selectivesearch\]'"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, method: Any, words: str
) -> None:
    import importlib

    def fail(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(SettingError, match=words):
        method(scene(), generator(0, "test"))
