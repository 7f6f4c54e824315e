"""Which rank to cut a layer to, and what the rank costs and saves (Girshick 2015, section 3.1).

Vocabulary: u outputs and v inputs of a layer, t a rank, n = min(u, v) singular values. Sizes are
(u, v), as weights have them. Biases stay as they are and are counted nowhere.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rcnnpipe.errors import SettingError

ROWS = 300  # regions of an image that layers are timed with
_CANDIDATES = 64  # ranks that a search by time chooses from
_SHORTEST = 0.005  # seconds that one measurement takes at least
_REPEATS = 7

Size = tuple[int, int]


def weights_of(size: Size, rank: int | None = None) -> int:
    """How many weights a layer has; with a rank, the two in its place (the paper's u t + t v)."""
    return size[0] * size[1] if rank is None else rank * (size[0] + size[1])


def largest_rank(size: Size) -> int:
    """The largest rank below u v / (u + v), that is with fewer weights than the layer; may be 0."""
    return (size[0] * size[1] - 1) // (size[0] + size[1])


def require_saving(name: str, size: Size, rank: int) -> None:
    """Refuse a rank that is none, or that makes a layer no smaller.

    Raises:
        SettingError: names the largest rank that makes sense.
    """
    most = largest_rank(size)
    if not most:
        raise SettingError(f"{name} of {_told(size)} has too few weights to be compressed")
    if type(rank) is not int or rank < 1:
        raise SettingError(f"{rank!r} is no rank for {name}; give a whole number from 1 to {most}")
    if rank > most:
        raise SettingError(
            f"rank {rank} saves no weights of {name}, which has {_told(size)}; the largest rank "
            f"that does is {most}"
        )


def kept_energy(values: Tensor, rank: int) -> float:
    """The share in [0, 1] of the squared singular values (n,) that a rank keeps."""
    squares = values.double().square()
    total = float(squares.sum())
    return float(squares[:rank].sum()) / total if total else 1.0


def approximation_error(values: Tensor, rank: int) -> float:
    """The Frobenius norm of what a rank leaves out, relative to that of W; in [0, 1].

    Args:
        values: all singular values (n,), falling.
        rank: t.
    """
    squares = values.double().square()
    total = float(squares.sum())
    return (float(squares[rank:].sum()) / total) ** 0.5 if total else 0.0


def rank_for_energy(values: Tensor, share: float) -> int:
    """The smallest rank that keeps a share of the squared singular values.

    Args:
        values: all singular values (n,), falling.
        share: in (0, 1].

    Raises:
        SettingError: there is no such share.
    """
    if not 0 < share <= 1:
        raise SettingError(f"a share of the energy lies above 0 and up to 1, {share:g} does not")
    reached = values.double().square().cumsum(0)
    return int((reached < share * reached[-1]).sum()) + 1


def rank_for_time(
    name: str, size: Size, share: float, seconds: Callable[[int | None], float]
) -> int:
    """The largest of some ranks whose two layers take at most a share of the layer's time.

    Ranks are tried by halving, as if time only rose with them.

    Args:
        name: of the layer, for the message.
        size: of the layer.
        share: in (0, 1).
        seconds: measures the two layers of a rank; for None, the layer (:func:`seconds_for`).

    Raises:
        SettingError: not even the smallest rank is as fast as that.
    """
    most = largest_rank(size)
    require_saving(name, size, 1)
    ranks = sorted({max(1, most * part // _CANDIDATES) for part in range(1, _CANDIDATES + 1)})
    whole = seconds(None)
    low, high = 0, len(ranks)  # ranks before low are fast enough, those from high on are not
    while low < high:
        middle = (low + high) // 2
        took = seconds(ranks[middle])
        low, high = (middle + 1, high) if took <= share * whole else (low, middle)
    if not low:  # and the smallest rank was the last one tried
        raise SettingError(
            f"rank {ranks[0]} of {name} takes {took / whole:.2f} of the layer's time, so no "
            f"rank takes {share:g}; give {name} a rank, or leave it out"
        )
    return ranks[low - 1]


def seconds_for(size: Size, rank: int | None, device: torch.device, rows: int = ROWS) -> float:
    """How long a layer takes for some rows, the best of several measurements.

    Args:
        size: of the layer, whose values do not matter.
        rank: of the two in its place; None for the layer itself.
        device: where to compute, in float32.
        rows: regions at once.
    """
    outputs, inputs = size
    with torch.device("meta"):
        whole = nn.Linear(inputs, outputs)
        pair = (nn.Linear(inputs, rank or 1, bias=False), nn.Linear(rank or 1, outputs))
    layers = nn.Sequential(*((whole,) if rank is None else pair)).to_empty(device=device)
    random = torch.Generator(device).manual_seed(0)
    with torch.inference_mode():
        for values in layers.parameters():
            values.normal_(0, inputs**-0.5, generator=random)
        regions = torch.randn(rows, inputs, generator=random, device=device)
        first = min(_measured(layers, regions, 1) for _ in range(3))  # warms up
        passes = max(1, round(_SHORTEST / first))
        return min(_measured(layers, regions, passes) for _ in range(_REPEATS))


def _measured(layers: nn.Module, inputs: Tensor, passes: int) -> float:
    _wait_for(inputs.device)
    start = time.perf_counter()
    for _ in range(passes):
        layers(inputs)
    _wait_for(inputs.device)
    return (time.perf_counter() - start) / passes


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _told(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
