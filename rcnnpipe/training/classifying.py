"""Classifying examples: the softmax of a network, averaged over the views it is shown of each.

Vocabulary: T examples, t of a group, W windows of each, S their side, B views at once, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rcnnpipe.ahead import ahead
from rcnnpipe.datasets.records import Record
from rcnnpipe.errors import RcnnpipeError, SettingError
from rcnnpipe.evaluation.classification import Answers, answers_of
from rcnnpipe.models.backbones import Network
from rcnnpipe.training.classifier import CropSource, warp_regions
from rcnnpipe.training.examples import Examples, Integers
from rcnnpipe.training.finetuning import PixelCache
from rcnnpipe.training.views import Views, frames_of, squares_in, views_of, whole_view


@dataclass(frozen=True)
class Classifier:
    """A network that is asked what examples are.

    Attributes:
        network: already on ``device``, in evaluation mode.
        examples: T of them.
        records: their images.
        views: what it is shown of each.
        device: where it computes.
        batch_size: windows at once.
        workers: threads that prepare views.
        cache_bytes: decoded images kept, for the objects of one image.
    """

    network: Network
    examples: Examples
    records: Sequence[Record]
    views: Views
    device: torch.device
    batch_size: int = 128
    workers: int = 1
    cache_bytes: int = 2**28

    @property
    def groups(self) -> list[Integers]:
        """Row numbers of the examples that are shown together: as many as make a batch of views."""
        few, total = max(1, self.batch_size // self.views.count), len(self.examples.boxes)
        return [np.arange(first, min(first + few, total)) for first in range(0, total, few)]

    def probabilities(self) -> Iterator[tuple[Integers, npt.NDArray[np.float64]]]:
        """For each group its row numbers (t,) and (t, K + 1), their softmax, the mean over views.

        Raises:
            RcnnpipeError: the network gives what are no numbers; names the image.
            SettingError: a whole frame is too large or too small for it.
        """
        cache, groups = PixelCache(self.records, self.cache_bytes), self.groups
        prepared = ahead(lambda rows: self._prepared(rows, cache), groups, self.workers)
        for rows, (windows, frames) in zip(groups, prepared, strict=True):
            sums = self._of_windows(windows, rows) + self._of_frames(frames, rows)
            found = (sums / self.views.count).numpy()
            wrong = rows[~np.isfinite(found).all(axis=1)]
            if len(wrong):
                raise RcnnpipeError(
                    f"the network gives no numbers for image '{self._image_id(wrong[0])}'; check "
                    "its weights"
                )
            yield rows, found

    def _prepared(
        self, rows: Integers, read: Callable[[int], npt.NDArray[np.uint8]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Windows (t * W * turns, 3, S, S), and the whole frames (3, H, W) if they are shown."""
        views, own = self.views, self.network.crop
        images, boxes = self.examples.images[rows], self.examples.boxes[rows]
        frames = (
            boxes if self.examples.whole_images else frames_of(self.records, images, boxes, own)
        )
        crop = own if views.stretched else replace(own, padding=0, mode="warp")
        shown = boxes[:, None] if views.stretched else squares_in(frames, views.squares)
        shown = np.repeat(shown, views.turns, axis=1)  # (t, W * turns, 4)
        windows = warp_regions(
            *(read, np.repeat(images, shown.shape[1]), shown.reshape(-1, 4)),
            np.tile(np.arange(shown.shape[1]) % 2 == 1, len(rows)) & views.mirrored,
            *(crop, self.network.preprocessing),
        )
        if views.full is None:
            return windows, []
        wholes = []
        for image, (left, top, right, bottom) in zip(images, frames.astype(int), strict=True):
            pixels = read(int(image))[top:bottom, left:right]
            wholes.append(whole_view(pixels, views.full, self.network.preprocessing))
        return windows, wholes

    def _of_windows(self, windows: Tensor, rows: Integers) -> Tensor:
        """Sums (t, K + 1) over the windows of each example."""
        sums = torch.zeros((len(rows), self.network.outputs), dtype=torch.float64)
        if len(windows) == 0:
            return sums
        parts = [self._softmax(part, rows) for part in torch.split(windows, self.batch_size)]
        return torch.cat(parts).view(len(rows), -1, self.network.outputs).sum(1)

    def _of_frames(self, frames: list[Tensor], rows: Integers) -> Tensor:
        """Sums (t, K + 1) over the whole frames of each example; those of one size go together."""
        sums = torch.zeros((len(rows), self.network.outputs), dtype=torch.float64)
        for shape in dict.fromkeys(frame.shape for frame in frames):
            alike = [number for number, frame in enumerate(frames) if frame.shape == shape]
            images = torch.stack([frames[number] for number in alike])
            sums[alike] = self._softmax(images, rows[alike])
            if self.views.mirrored:
                sums[alike] += self._softmax(images.flip(3), rows[alike])
        return sums

    @torch.inference_mode()
    def _softmax(self, images: Tensor, rows: Integers) -> Tensor:
        """(B, K + 1) float64 on the CPU, of views of these examples."""
        try:
            return self.network.logits(images.to(self.device)).double().softmax(1).cpu()
        except (RuntimeError, MemoryError) as error:
            told = self._explained(error, images.shape, self._image_id(rows[0]))
            if told is None:
                raise
            raise SettingError(told) from error

    def _explained(self, error: Exception, shape: torch.Size, image_id: str) -> str | None:
        """Why views (B, 3, H, W) could not pass the network, as one sentence; None: not known."""
        what = (
            f"{shape[0]} views of {shape[3]} x {shape[2]} pixels, the first of image '{image_id}',"
        )
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if memory or "allocate" in str(error):
            return f"{what} do not fit into the memory; lower --batch-size or --scale"
        if "size" in str(error).lower():
            return (
                f"{what} are too small for {self.network.name}, whose map would have no cells; "
                "raise --scale"
            )
        return None

    def _image_id(self, row: int) -> str:
        return self.records[int(self.examples.images[row])].image_id


def answers_by_crops(source: CropSource) -> Answers:
    """What a source's network, in evaluation mode, says of its examples by one window of each."""
    network, examples = source.network, source.examples
    views = views_of("crop", network, examples.whole_images)
    classifier = Classifier(
        *(network, examples, source.records, views, source.ranks.device),
        *(source.plan.batch_size, source.workers, source.cache_bytes),
    )
    return answers_of(examples.classes, examples.labels, classifier.probabilities())
