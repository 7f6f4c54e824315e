"""The pixels of a record, checked against what its annotation says of them."""

import numpy as np
import numpy.typing as npt

from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import DataError
from rcnnpipe.images import read_image


def read_pixels(record: Record) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) uint8 RGB of a record.

    Raises:
        DataError: it cannot be read, or has another size than the annotation says, so that boxes
            would lie elsewhere.
    """
    image = read_image(record.path)
    if image.shape[:2] != tuple(record.size):
        height, width = image.shape[:2]
        raise DataError(
            f"image {record.image_id} is {width} x {height} pixels, but its annotation says "
            f"{record.size[1]} x {record.size[0]}; run rcnnpipe check"
        )
    return image
