"""Truncated SVD of a linear layer: two smaller layers in its place (Girshick 2015, section 3.1).

W = U S V' is cut to its t largest singular values. The first layer is S V', without bias; the
second is U, with the bias of the layer; no rectifier stands between. Nothing is trained afterwards.

Vocabulary: u outputs and v inputs of the layer, t the rank, n = min(u, v) singular values.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models.architectures import Layer
from rcnnpipe.models.svd_ranks import Size, require_saving

Pair = tuple[nn.Linear, nn.Linear]


class Factors(NamedTuple):
    """W = U S V', float64 on the CPU.

    Attributes:
        left: U (u, n); the largest entry of each column is positive.
        values: the diagonal of S (n,), falling.
        right: V' (n, v).
    """

    left: Tensor
    values: Tensor
    right: Tensor


def decompose(weight: Tensor) -> Factors:
    """The singular value decomposition of weights (u, v); equal weights give equal factors.

    By the eigenvectors of W W' or of W' W, whichever is smaller: the squares cost no digit that
    float32 weights have, and 1024 x 6272 of them take a sixth of the time of a direct
    decomposition. That leaves the sign of each pair of vectors open, so it is set here.
    """
    values = weight.detach().cpu().double()
    if values.shape[0] > values.shape[1]:
        left, singular, right = _wide_svd(values.T)
        left, right = right.T, left.T
    else:
        left, singular, right = _wide_svd(values)
    rows = left.abs().argmax(dim=0, keepdim=True)  # (1, n)
    signs = left.gather(0, rows).sign()
    return Factors(left * signs, singular, right * signs.T)


def _wide_svd(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (u, u), S (u,) and V' (u, v) of float64 values (u, v), u <= v; V' is 0 where S is."""
    squares, left = torch.linalg.eigh(values @ values.T)
    left = left.flip(1)
    projected = left.T @ values  # S V'
    singular = squares.flip(0).clamp(min=0).sqrt()
    null = singular <= singular[0] * torch.finfo(torch.float32).eps
    singular = singular.where(~null, 0)
    return left, singular, (projected / singular[:, None]).where(~null[:, None], 0)


def truncated_svd(
    weight: Tensor, bias: Tensor | None, rank: int, factors: Factors | None = None
) -> Pair:
    """The two layers that stand in for one.

    Args:
        weight: (u, v).
        bias: (u,), or None.
        rank: t in 1..n; at n the two give what the one gives.
        factors: of the weights, where they are at hand.

    Returns:
        layers with weights (t, v) and (u, t), of the weights' kind and where these are.

    Raises:
        SettingError: there is no such rank.
    """
    size = (weight.shape[0], weight.shape[1])
    if not 1 <= rank <= min(size):
        raise SettingError(f"weights of {size[0]} x {size[1]} have no rank {rank}")
    left, values, right = factors or decompose(weight)
    first, second = (part.to(weight.dtype) for part in empty_pair(size, rank, bias is not None))
    with torch.no_grad():
        first.weight.copy_(values[:rank, None] * right[:rank])
        second.weight.copy_(left[:, :rank])
        if bias is not None:
            second.bias.copy_(bias)
    return first.to(weight.device), second.to(weight.device)


def empty_pair(size: Size, rank: int, with_bias: bool = True) -> Pair:
    """The two layers on the CPU, their values undefined."""
    outputs, inputs = size
    with torch.device("meta"):
        first, second = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, with_bias)
    return first.to_empty(device="cpu"), second.to_empty(device="cpu")


def is_pair(module: nn.Module) -> bool:
    """Whether a module is what :func:`put_truncated_svd` puts in the place of a linear one."""
    children = list(module.children())
    linear = all(isinstance(child, nn.Linear) for child in children)
    return isinstance(module, nn.Sequential) and len(children) == 2 and linear


def put_truncated_svd(
    body: nn.Module, path: str, rank: int, factors: Factors | None = None
) -> None:
    """Put two layers into the place of a linear module.

    Args:
        body: changed in place.
        path: of the module, one of :func:`linear_modules`'s.
        rank: t.
        factors: of its weights, where they are at hand.

    Raises:
        SettingError: as of :func:`compressible`.
    """
    old = compressible(body, path, rank)
    _put(body, path, truncated_svd(old.weight, old.bias, rank, factors))


def _put(body: nn.Module, path: str, pair: Pair) -> None:
    body.set_submodule(path, nn.Sequential(*pair).train(body.training))


def put_empty_pairs(body: nn.Module, compressed: object, known: Collection[str]) -> None:
    """Make room for the values of a network that was compressed.

    Args:
        body: as it is without compression.
        compressed: path of a linear module -> rank, as a model file says.
        known: paths of the modules that can be compressed.

    Raises:
        SettingError: it does not fit the network.
    """
    if not isinstance(compressed, Mapping):
        raise SettingError("the compressed layers are not given as a mapping to their ranks")
    for path, rank in compressed.items():
        old = compressible(body, path, rank)
        if path not in known:
            raise SettingError(f"'{path}' is no layer to compress; those are {', '.join(known)}")
        size = (old.out_features, old.in_features)
        _put(body, path, empty_pair(size, rank, old.bias is not None))


def ranks_of(body: nn.Module, paths: Iterable[str]) -> dict[str, int]:
    """Path -> rank of those modules in whose place two layers stand."""
    modules = {path: body.get_submodule(path) for path in paths}
    return {path: parts_of(own)[0].weight.shape[0] for path, own in modules.items() if is_pair(own)}


def parts_of(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """A module with weights alone; of a compressed one, the two in its place."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]


def linear_modules(layers: Mapping[str, Layer], body: nn.Module) -> dict[str, str]:
    """Layer name -> path of its linear module, or of the two in its place; others have none.

    Layers whose modules the body has not, as a detector has no more its network's classifier, are
    left out.
    """
    modules = dict(body.named_modules())
    return {
        name: path
        for name, layer in layers.items()
        for path in layer.modules
        if path in modules and (isinstance(modules[path], nn.Linear) or is_pair(modules[path]))
    }


def compressible(body: nn.Module, path: str, rank: int) -> nn.Linear:
    """The linear module to compress.

    Raises:
        SettingError: there is none, it has been compressed before, or the rank saves nothing.
    """
    try:
        module = body.get_submodule(path)
    except AttributeError:
        raise SettingError(f"there is no module '{path}' to compress") from None
    if is_pair(module):
        raise SettingError(f"'{path}' is compressed already; compress the model it was made from")
    if not isinstance(module, nn.Linear):
        raise SettingError(f"'{path}' is no linear module, so it has no truncated SVD")
    require_saving(f"'{path}'", (module.out_features, module.in_features), rank)
    return module
