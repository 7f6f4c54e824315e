"""Where the real photographs are, outside the repository; tests skip where they are not."""

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("RCNNPIPE_REALDATA", _BESIDE))


def needs_data(test):  # type: ignore[no-untyped-def]
    """Mark a test (or class) ``realdata`` and skip it where the folder is absent."""
    skip = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
    return pytest.mark.realdata(skip(test))
