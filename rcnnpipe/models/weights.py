"""Weights from files and from torchvision, by the names of torchvision's state dicts.

Names and shapes are compared with the network before a value is read, so that a false header takes
no memory and a wrong file gives one sentence. Nothing is ever unpickled but plain tensors.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.artifacts.store import Header
from rcnnpipe.devices import is_lack_of_memory
from rcnnpipe.errors import ArtifactError, DataError, SettingError, one_line
from rcnnpipe.models.architectures import NETWORKS
from rcnnpipe.models.backbones import Network, build_network, create_network
from rcnnpipe.models.detector import Detector, build_detector
from rcnnpipe.models.fitting import Shape, require_finite, require_fit
from rcnnpipe.models.preprocessing import Preprocessing
from rcnnpipe.models.pyramid_head import PyramidHead
from rcnnpipe.models.tensor_files import READERS
from rcnnpipe.models.warp import Crop

_TORCHVISION_NAMES = {"squeezenet": "squeezenet1_0"}


def load_network(
    name: str | None,
    source: str | Path | None,
    generator: torch.Generator,
    *,
    crop: Crop | None = None,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """A network with the given weights: what fine-tuning and feature extraction start from.

    Args:
        name: a key of ``NETWORKS``; may be None where ``source`` is a model file of ours.
        source: None or "none" for initial values from ``generator``; "torchvision" or a name of
            torchvision's enumerations such as "IMAGENET1K_V1"; or a file: .pth, .pt, .safetensors,
            .npz, or a model of ours, .h5, which knows its network, window and preprocessing itself.
        generator: for initial values.
        crop: the window, if not the network's (or the model file's) own.
        preprocessing: of the weights, if not the network's (or the model file's) own.

    Returns:
        The network in evaluation mode on the CPU, with as many outputs as the weights have. Batch
        norms whose statistics are all 0 and 1, that is folded into their scales, are frozen.

    Raises:
        SettingError: unknown network or name of weights.
        DataError: a file that does not fit; ArtifactError for a model file of ours.
    """
    if source is not None and Path(source).suffix == ".h5":
        return _own_model(Path(source), name, crop, preprocessing)
    if name is None:
        raise SettingError(f"name a network: {', '.join(NETWORKS)}")
    if source is None or source == "none":
        return create_network(name, generator=generator, crop=crop, preprocessing=preprocessing)
    with _tensors_of(name, source) as (where, shapes, read):
        last = f"{NETWORKS[name].classifier}.weight" if name in NETWORKS else ""
        outputs = shapes[last][0] if shapes.get(last) else 1000
        network = create_network(name, outputs, crop=crop, preprocessing=preprocessing)
        _load(network, where, shapes, read)
    return network


def require_made_by(path: Path, header: Header, model: Path, maker: Header) -> None:
    """Refuse features that another model than the one to go on with has made.

    Raises:
        ArtifactError: names both files and the command to run.
    """
    if header.inputs.get("model") != maker.id:
        raise ArtifactError(
            f"{path} was not made by {model}; run rcnnpipe extract-features with --model {model}"
        )


def require_same_convolutions(path: Path, header: Header, model: Path, maker: Header) -> None:
    """Refuse to run a model's last layers on features whose maps are not the model's own.

    They are where the model made the features, or where it was fine-tuned behind its pyramid alone
    from a model that did.

    Raises:
        ArtifactError: names both files and what to run.
    """
    behind_pyramid = maker.settings.get("system") == "sppnet"
    same = {maker.id, maker.inputs.get("init") if behind_pyramid else None}
    if header.inputs.get("model") not in same:
        raise ArtifactError(
            f"the maps of {path} are not those of {model}, which neither made them nor was "
            "fine-tuned from what made them; run rcnnpipe extract-features on the images"
        )


def put_on_pyramid(network: Network, head: PyramidHead, generator: torch.Generator) -> Network:
    """The convolutions of a network under a pyramid, with fully connected layers that are new.

    Args:
        network: its weights up to the head's map are taken, what follows is not.
        head: the pyramid and what stands on it.
        generator: for the initial values of the new layers.

    Raises:
        SettingError: they do not fit into the memory.
    """
    try:
        new = create_network(
            *(network.name, network.outputs, generator),
            crop=network.crop,
            preprocessing=network.preprocessing,
            head=head,
        )
    except (RuntimeError, MemoryError, TypeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise SettingError(
            f"{head.hidden} units on a pyramid of {head.pyramid.bins} bins do not fit into the "
            "memory; lower --pyramid or --hidden"
        ) from None
    if network.frozen_batch_norm:
        new.freeze_batch_norm()
    values = new.state_dict()
    fully_connected = ("fc6.", "fc7.", "fc8.")
    for key, value in network.state_dict().items():
        if key in values and not key.startswith(fully_connected):
            values[key] = value
    new.load_state_dict(values)
    return new


def load_weights(network: Network, source: str | Path) -> None:
    """Load weights into a network that exists; all names and shapes must be the network's.

    Args:
        network: written in place; batch norms with folded statistics are frozen.
        source: a name of torchvision's weights, or a .pth, .pt, .safetensors or .npz file.
    """
    with _tensors_of(network.name, source) as (where, shapes, read):
        _load(network, where, shapes, read)


def read_network(path: Path) -> tuple[Header, Network]:
    """The network of a model file, in evaluation mode on the CPU, and the file's header.

    Raises:
        ArtifactError: the file is missing, damaged, a detector or something else.
        DataError: its settings and tensors do not fit, or are no numbers.
    """
    header, network = read_model_of_regions(path)
    if isinstance(network, Detector):
        raise ArtifactError(
            f"{path} holds a detector, which extract-features and detect run; a network alone, "
            "from pretrain or finetune --system rcnn, is needed here"
        )
    return header, network


def read_model_of_regions(path: Path) -> tuple[Header, Network | Detector]:
    """Whatever a model file holds: a network of windows or with a pyramid, or a detector.

    Raises:
        ArtifactError: the file is missing, damaged or something else.
        DataError: its settings and tensors do not fit, or are no numbers.
    """
    model = read_model(path)
    settings = model.architecture
    build = build_detector if "detector" in settings else build_network
    try:
        network = build(settings, model.tensors)
    except SettingError as error:
        raise DataError(f"{path} cannot be built: {error}") from None
    require_finite(str(path), network.state_dict())
    return model.header, network


def require_named(path: Path, network: Network, name: str | None) -> None:
    """Refuse a name that is not that of the network of a file; None is no name.

    Raises:
        SettingError: tells both.
    """
    if name is not None and network.name != name:
        raise SettingError(
            f"{path} holds a {network.name}, not a {name}; leave the network's name out"
        )


def _own_model(
    path: Path, name: str | None, crop: Crop | None, preprocessing: Preprocessing | None
) -> Network:
    _, network = read_network(path)
    require_named(path, network, name)
    network.crop = crop or network.crop
    network.preprocessing = preprocessing or network.preprocessing
    return network


@contextmanager
def _tensors_of(
    name: str, source: str | Path
) -> Iterator[tuple[str, Mapping[str, Shape], Callable[[str], Tensor]]]:
    """Where the tensors come from, for messages; their shapes; and a function that reads one."""
    path = Path(source)
    if path.suffix in READERS:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file of weights")
        with READERS[path.suffix](path) as (shapes, read):
            yield str(path), shapes, read
    else:
        where, tensors = _from_torchvision(name, str(source))
        yield (
            where,
            {key: tuple(value.shape) for key, value in tensors.items()},
            tensors.__getitem__,
        )


def _from_torchvision(name: str, source: str) -> tuple[str, dict[str, Tensor]]:
    if name in NETWORKS and not NETWORKS[name].torchvision:
        told = "" if source == "torchvision" else f"{source!r} is no file of weights, and "
        kinds = ", ".join((*READERS, ".h5"))
        raise SettingError(f"{told}torchvision has no {name}; give a file ({kinds}), or none")
    known = get_model_weights(_TORCHVISION_NAMES.get(name, name))
    names = [weights.name for weights in known]
    if source != "torchvision" and source not in names:
        raise SettingError(
            f"{source!r} is neither a file of weights ({', '.join(READERS)}, .h5) nor one of "
            f"torchvision's for {name}: torchvision, {', '.join(names)}"
        )
    weights = known["DEFAULT" if source == "torchvision" else source]
    try:
        return str(weights), dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{weights} could not be fetched from {weights.url} ({one_line(error)}); "
            "fetch it elsewhere and give the file"
        ) from None


def _load(
    network: Network,
    where: str,
    shapes: Mapping[str, Shape],
    read: Callable[[str], Tensor],
) -> None:
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    require_fit(network.name, wanted, where, shapes)
    values = {key: read(key) for key in wanted if key in shapes}
    values |= {key: torch.tensor(0) for key in wanted if key not in shapes}  # counters
    require_finite(where, values)
    network.load_state_dict(values)
    if has_folded_statistics(network):
        network.freeze_batch_norm()


def has_folded_statistics(network: nn.Module) -> bool:
    """Whether it has batch norms and all their means are 0 and variances 1.

    Such weights were made with the statistics multiplied into scale and bias; in training mode the
    statistics of a batch would be applied a second time and wreck them.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return bool(norms) and all(
        bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())
        for norm in norms
        if norm.running_mean is not None and norm.running_var is not None
    )
