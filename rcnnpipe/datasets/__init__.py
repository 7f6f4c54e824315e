"""Images and their annotations, read through a recipe or a recognised folder."""

from rcnnpipe.datasets.reader import open_dataset
from rcnnpipe.datasets.records import BACKGROUND, Dataset, Record

__all__ = ["BACKGROUND", "Dataset", "Record", "open_dataset"]
