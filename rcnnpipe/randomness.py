"""Explicit generators, one for each (seed, purpose, image or epoch): order cannot matter."""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """A generator that depends on nothing but its arguments.

    Equal arguments give equal streams whatever ran before, so one image or one epoch can be redone
    alone, by another process or after a kill, and come out the same.
    """
    text = "\x1f".join((str(seed), purpose, *map(str, keys)))
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
