"""Rows that several classes hold at once, kept in memory once."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Integers = npt.NDArray[np.int64]


class RowStore:
    """Rows (D,) by their number in the file, with a count of the classes that hold each.

    Memory is what the rows take as they are stored (float16), up to a half more for growth.

    Attributes:
        rows: (S, D), some of them unused. It grows in place: keep no views of it.
    """

    def __init__(self, width: int, dtype: npt.DTypeLike = np.float16) -> None:
        """Begin without rows.

        Args:
            width: D.
            dtype: of the rows.
        """
        self.rows: Array = np.empty((0, width), dtype)
        self._holders = np.zeros(0, np.int64)
        self._keys = np.zeros(0, np.int64)
        self._free: list[int] = []
        self._place_of: dict[int, int] = {}

    def __len__(self) -> int:
        """Rows held by one class or more."""
        return len(self._place_of)

    def hold(self, keys: Integers, rows: Array, holders: Integers) -> Integers:
        """Take rows (n, D) in, or find them where they are.

        Args:
            keys: (n,) number of each row, none twice.
            rows: the rows themselves.
            holders: (n,) how many more classes hold each.

        Returns:
            Places (n,) in :attr:`rows`.
        """
        new = np.flatnonzero([key not in self._place_of for key in keys.tolist()])
        self._grow(len(new))
        taken = [self._free.pop() for _ in new]
        for place, index in zip(taken, new.tolist(), strict=True):
            self.rows[place] = rows[index]
        self._keys[taken] = keys[new]
        self._place_of.update(zip(keys[new].tolist(), taken, strict=True))
        places = np.array([self._place_of[key] for key in keys.tolist()], np.int64)
        self._holders[places] += holders
        return places

    def release(self, places: Integers) -> None:
        """One holder less for each place; rows that nobody holds are forgotten."""
        self._holders[places] -= 1
        for place in places[self._holders[places] == 0].tolist():
            del self._place_of[int(self._keys[place])]
            self._free.append(place)

    def _grow(self, needed: int) -> None:
        missing = needed - len(self._free)
        if missing <= 0:
            return
        before = len(self.rows)
        after = before + max(missing, before // 2)
        # The system moves the pages of a large block instead of copying them.
        self.rows.resize((after, self.rows.shape[1]), refcheck=False)
        self._holders.resize(after, refcheck=False)
        self._keys.resize(after, refcheck=False)
        self._free = list(range(after - 1, before - 1, -1)) + self._free
