"""Proposals for a data set's images, in their order: of a file, or found when asked for."""

from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnnpipe.artifacts.columns import rows_for_images
from rcnnpipe.artifacts.proposals import read_proposals
from rcnnpipe.datasets.records import Dataset
from rcnnpipe.images import read_image
from rcnnpipe.proposals.selective_search import propose
from rcnnpipe.ragged import rows_of
from rcnnpipe.randomness import generator


def proposals_for(
    path: Path | None, dataset: Dataset, most: int, inputs: MutableMapping[str, Any]
) -> list[npt.NDArray[np.float32]]:
    """The boxes (P, 4) of each image of a data set, best first; none where there is no file.

    Args:
        path: a proposals file, or None.
        dataset: whose images are wanted; the file may hold more of them.
        most: boxes of an image at most, 0 for all.
        inputs: the file's header is added to it as "proposals".

    Raises:
        ArtifactError: images are missing in the file, or have another size there.
    """
    if path is None:
        return [np.empty((0, 4), np.float32) for _ in dataset.records]
    proposals = read_proposals(path)
    inputs["proposals"] = proposals.header
    numbers = rows_for_images(path, proposals, dataset, "proposals")
    rows = [rows_of(proposals.offsets, number) for number in numbers]
    return [proposals.boxes[own][: most or None] for own in rows]


def proposals_on_the_spot(
    dataset: Dataset, seed: int, most: int
) -> Callable[[int], npt.NDArray[np.float32]]:
    """A function that finds the boxes (P, 4) of an image by its number: fast selective search.

    They are those that ``rcnnpipe propose`` writes with its defaults and the same seed.
    """

    def boxes_of(number: int) -> npt.NDArray[np.float32]:
        record = dataset.records[number]
        random = generator(seed, "propose", record.image_id)
        found = propose(read_image(record.path), random).boxes
        return found[: most or None]

    return boxes_of
