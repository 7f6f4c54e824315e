"""The sides of the windows that a classifier is trained on: one for each epoch, weights are shared.

He et al. 2014, section 2.3: the same region is seen at another resolution, nothing is cropped anew.
"""

from dataclasses import replace

import torch
from torch.nn.functional import interpolate

from rcnnpipe.errors import SettingError
from rcnnpipe.models.backbones import Network
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.warp import Crop
from rcnnpipe.models.without_values import without_values
from rcnnpipe.randomness import generator
from rcnnpipe.systems.pretraining import Pretraining


def size_of_epoch(plan: Pretraining, own: int, seed: int, epoch: int) -> int:
    """The side of the windows of an epoch, which depends on nothing but these.

    Args:
        plan: which sizes there are.
        own: side of the network's own window, where the plan names none.
        seed: of a random size.
        epoch: from 0.
    """
    if plan.random_size is not None:
        low, high = plan.random_size
        return int(generator(seed, "window size", epoch).integers(low, high + 1))
    return plan.sizes[epoch % len(plan.sizes)] if plan.sizes else own


def crop_at(crop: Crop, size: int) -> Crop:
    """The same region in a window of another side; the context is rounded to whole pixels."""
    return replace(crop, size=size, padding=round(crop.padding * size / crop.size))


def preprocessing_at(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """The same for windows of another side: a mean image (3, S, S) is warped to it (appendix A)."""
    mean = preprocessing.mean_image
    if mean is None or mean.shape[-1] == size:
        return preprocessing
    resized = interpolate(mean[None], (size, size), mode="bilinear")[0]
    return replace(preprocessing, mean=resized)


def require_sizes(network: Network, plan: Pretraining) -> None:
    """Stop before the work where the network cannot take windows of all the plan's sizes.

    Raises:
        SettingError: its fully connected layers take one size alone, or its map would be empty.
    """
    option = "--random-size" if plan.random_size is not None else "--sizes"
    for size in plan.random_size or plan.sizes:
        if takes(network, size):
            continue
        if not takes(network, 2 * network.crop.size):
            raise SettingError(
                f"{network.name}'s fully connected layers take windows of {network.crop.size} "
                f"pixels, not of {size}; give --pyramid, which takes any, or leave {option} out"
            )
        raise SettingError(
            f"windows of {size} pixels are too small for {network.name}, whose map would have no "
            f"cells; raise {option}"
        )


def takes(network: Network, size: int) -> bool:
    """Whether the network makes logits of windows of a side; nothing is computed."""
    images = torch.empty(1, 3, size, size, device="meta")
    try:
        without_values(network, network.forward, images)
    except RuntimeError:  # shapes that do not fit, or maps without cells
        return False
    return True
