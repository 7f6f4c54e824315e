"""Stored features as numbers: compiled as they are told in Python."""

import numpy as np

from rcnnpipe.linear.rows import dot, finite_rows, number


def test_compiled_code_reads_every_finite_half_as_python_does() -> None:
    stored = np.arange(2**16, dtype=np.uint16)[:, None]
    exact = stored.view(np.float16).astype(np.float32)[:, 0]
    np.testing.assert_array_equal([number(row[0]) for row in stored], exact)
    one = np.ones(1, np.float32)
    finite = np.isfinite(exact)
    compiled = np.array([dot(row, one) for row in stored[finite]])
    np.testing.assert_array_equal(compiled, exact[finite])
    np.testing.assert_array_equal(finite_rows(stored), finite)


def test_floats_stay_as_they_are() -> None:
    values = np.array([[1.5], [-3e38], [np.inf], [np.nan]], np.float32)
    assert number(values[1, 0]) == values[1, 0]
    assert dot(values[1], np.ones(1, np.float32)) == values[1, 0]
    assert finite_rows(values).tolist() == [True, True, False, False]
