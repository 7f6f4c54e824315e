"""A network cut at its named layers, with what belongs to its weights: window and preprocessing.

Vocabulary: R windows, S their side, D values of a layer for one window.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from rcnnpipe.errors import SettingError
from rcnnpipe.models import compression
from rcnnpipe.models.architectures import NETWORKS, Architecture
from rcnnpipe.models.model_values import from_arrays, refusing_unfit, to_arrays
from rcnnpipe.models.preprocessing import Preprocessing, build_preprocessing, preset
from rcnnpipe.models.pyramid_head import PyramidHead, build_head, with_pyramid
from rcnnpipe.models.warp import Crop, build_crop
from rcnnpipe.models.without_values import without_values

_MEAN_IMAGE = "preprocessing.mean"


class Network(nn.Module):
    """A backbone whose layers can be had by name, all of them in one pass.

    Its state dict has torchvision's keys. Made by :func:`create_network` or :func:`build_network`.

    Attributes:
        name: a key of :data:`NETWORKS`.
        outputs: of the classifier: 1000 for ImageNet, K + 1 with background.
        crop: how a region becomes one of its windows.
        preprocessing: what its weights expect of pixels.
        head: the pyramid that pools its last map, None for the architecture's own layers.
        architecture: how it is built.
        original_classifier: False once :meth:`replace_classifier` put a new one in.
        frozen_batch_norm: whether statistics and scales of its batch norms are constants.
        epsilon: what they add to variances then, None for the architecture's own.
    """

    def __init__(
        self,
        name: str,
        outputs: int,
        crop: Crop,
        preprocessing: Preprocessing,
        head: PyramidHead | None = None,
    ) -> None:
        """Take over the parts of the architecture's module, without values yet."""
        super().__init__()
        self.name, self.outputs = name, outputs
        self.crop, self.preprocessing, self.head = crop, preprocessing, head
        usual = NETWORKS[name]
        self.architecture: Architecture = with_pyramid(usual, head) if head else usual
        self.original_classifier, self.frozen_batch_norm = True, False
        self.epsilon: float | None = None
        # Convolutions mostly run faster so, by up to twice; see keep_channels_last.
        self.memory_format = torch.channels_last
        with torch.device("meta"):
            body = self.architecture.build(outputs)
        body.to_empty(device="cpu")
        for child, module in body.named_children():
            self.add_module(child, module)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """All layers that can be asked for, first to last; "logits" is the classifier's output."""
        return tuple(self.architecture.layers)

    @property
    def layer_sizes(self) -> dict[str, int]:
        """D of every layer at this network's window size; nothing is computed."""
        image = torch.empty(1, 3, self.crop.size, self.crop.size, device="meta")
        outputs = without_values(self, self.forward, image, self.layer_names)
        return {name: value.numel() for name, value in outputs.items()}

    @property
    def classifier_module(self) -> nn.Linear | nn.Conv2d:
        """The last layer with weights: a linear map or a 1 x 1 convolution."""
        return compression.parts_of(self.get_submodule(self.architecture.classifier))[-1]

    def forward(
        self,
        images: Tensor,
        layers: Sequence[str] = ("logits",),
        flatten: bool = False,
        source: str = "image",
    ) -> dict[str, Tensor]:
        """The layers asked for, in one pass that goes no further than the last of them.

        Args:
            images: (R, 3, S, S) float, preprocessed.
            layers: names out of :attr:`layer_names`.
            flatten: give (R, D) for maps too, channel first: index = (c * H + y) * W + x.
            source: the layer that ``images`` are values of, if they are not images.

        Returns:
            Layer name -> (R, C, H, W) or (R, D), in the order of ``layers``.

        Raises:
            SettingError: the network has no layer of such a name.
        """
        plan = self._plan(layers, source)
        table = self.architecture.layers
        order = self.memory_format if images.ndim == 4 else torch.contiguous_format
        held = {source: images.contiguous(memory_format=order)}
        for step, name in enumerate(plan):
            before = table[name].source
            still_needed = {table[later].source for later in plan[step + 1 :]} | set(layers)
            value = held[before] if before in still_needed else held.pop(before)
            for module in table[name].modules:
                value = self.get_submodule(module)(value)
            held[name] = value
        return {name: held[name].flatten(1) if flatten else held[name] for name in layers}

    def logits(self, images: Tensor, source: str = "image") -> Tensor:
        """(R, outputs) scores before the softmax of images (R, 3, S, S), or values of a layer."""
        scores: Tensor = self(images, source=source)["logits"]
        return scores

    def _plan(self, layers: Iterable[str], source: str) -> list[str]:
        table = self.architecture.layers
        needed: set[str] = set()
        for layer in layers:
            if layer not in table:
                raise SettingError(
                    f"{self.name} has no layer {layer!r}; its layers are {', '.join(table)}"
                )
            while layer != source:
                if layer == "image":
                    raise SettingError(f"{self.name} does not make its layers from {source!r}")
                needed.add(layer)
                layer = table[layer].source
        return [name for name in table if name in needed]

    def replace_classifier(self, outputs: int, generator: torch.Generator) -> None:
        """Put in a classifier that knows nothing: weights N(0, 0.01), bias 0.

        Girshick et al. 2014, 2.3 and the authors' prototxt. SqueezeNet's rectifier after the
        classifier, which would silence half of the new outputs, goes with the old one.
        """
        old = compression.parts_of(self.get_submodule(self.architecture.classifier))[0]
        new: nn.Linear | nn.Conv2d
        with torch.device("meta"):
            if isinstance(old, nn.Conv2d):
                new = nn.Conv2d(old.in_channels, outputs, 1)
            else:
                new = nn.Linear(old.in_features, outputs)
        new.to_empty(device="cpu")  # the generator's device, so that every device starts the same
        nn.init.normal_(new.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]
        self._set_classifier(new.to(old.weight.device), outputs)

    def _set_classifier(self, new: nn.Module, outputs: int) -> None:
        self.set_submodule(self.architecture.classifier, new)
        self.outputs, self.original_classifier = outputs, False
        if self.architecture.classifier == "classifier.1":  # SqueezeNet's own
            self.set_submodule("classifier.2", nn.Identity())

    @property
    def linear_layers(self) -> dict[str, str]:
        """As :func:`compression.linear_modules` has them."""
        return compression.linear_modules(self.architecture.layers, self)

    def compress(self, path: str, rank: int, factors: compression.Factors | None = None) -> None:
        """Put a truncated SVD in a linear module's place; :func:`compression.put_truncated_svd`."""
        compression.put_truncated_svd(self, path, rank, factors)

    @property
    def compressed(self) -> dict[str, int]:
        """Path of a linear module -> rank of the two that :meth:`compress` put there."""
        return compression.ranks_of(self, self.linear_layers.values())

    def freeze_batch_norm(self, epsilon: float | None = None) -> None:
        """Make every batch norm the constant affine map it is in evaluation, or with an epsilon."""
        self.epsilon = epsilon
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(module.num_features, epsilon or module.eps)
                frozen.load_state_dict(module.state_dict())
                self.set_submodule(name, frozen.to(module.weight.device))
        self.frozen_batch_norm = True

    def settings(self) -> dict[str, Any]:
        """JSON from which :func:`build_network` makes the same network, values apart."""
        rare = {"compressed": self.compressed, "epsilon": self.epsilon}
        return {
            "network": self.name,
            "outputs": self.outputs,
            "original_classifier": self.original_classifier,
            "frozen_batch_norm": self.frozen_batch_norm,
            "crop": self.crop.settings(),
            "preprocessing": self.preprocessing.settings(),
            "head": self.head.settings() if self.head else None,
        } | {name: value for name, value in rare.items() if value}

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Values for the model file: the state dict, and a per-pixel mean where there is one."""
        values = dict(self.state_dict())
        if self.preprocessing.mean_image is not None:
            values[_MEAN_IMAGE] = self.preprocessing.mean_image
        return to_arrays(values)


def create_network(
    name: str,
    outputs: int = 1000,
    generator: torch.Generator | None = None,
    *,
    crop: Crop | None = None,
    preprocessing: Preprocessing | None = None,
    head: PyramidHead | None = None,
) -> Network:
    """A network by name, in evaluation mode on the CPU.

    Args:
        name: a key of :data:`NETWORKS`.
        outputs: of its classifier.
        generator: initial values are drawn from it (see :func:`initialise`); None leaves them
            undefined, for weights to be loaded.
        crop: None takes the architecture's window, warped with its context.
        preprocessing: None takes that of the architecture's usual weights.
        head: a pyramid on one of its maps, None for the layers that it has itself.

    Raises:
        SettingError: there is no such network.
    """
    if name not in NETWORKS:
        raise SettingError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    usual = NETWORKS[name]
    network = Network(
        *(name, outputs, crop or Crop(usual.input_size, usual.padding)),
        *(preprocessing or preset(usual.preprocessing), head),
    )
    initialise(network, generator)
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def keep_channels_last(model: nn.Module, channels_last: bool) -> None:
    """Choose how maps and weights lie in memory; results differ by rounding alone.

    Args:
        model: a network, or what holds one; changed in place.
        channels_last: as networks are built, or channel after channel.
    """
    order = torch.channels_last if channels_last else torch.contiguous_format
    for module in model.modules():
        if isinstance(module, Network):
            module.memory_format = order
    model.to(memory_format=order)  # type: ignore[call-overload]


def initialise(network: Network, generator: torch.Generator | None) -> None:
    """Give every parameter its first value, in order, from one generator.

    Weights N(0, 2 / fan in) (He et al. 2015, for rectifiers), the classifier's N(0, 0.01) (Girshick
    et al. 2014), biases 0, batch norms the identity. The papers' own networks started from narrower
    Gaussians, from which networks this deep hardly train without days of iterations.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.weight.fill_(1)
                module.bias.zero_()
            elif isinstance(module, nn.Conv2d | nn.Linear) and generator is not None:
                last = module is network.classifier_module
                deviation = 0.01 if last else (2 / module.weight[0].numel()) ** 0.5
                module.weight.normal_(0, deviation, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


def empty_network(settings: Mapping[str, Any], mean_image: Tensor | None = None) -> Network:
    """A network from a model file's architecture settings, its values undefined.

    Raises:
        KeyError, TypeError, RuntimeError, SettingError: these are no settings of a network.
    """
    network = create_network(
        settings["network"],
        settings["outputs"],
        crop=build_crop(settings["crop"]),
        preprocessing=build_preprocessing(settings["preprocessing"], mean_image),
        head=build_head(settings["head"]) if settings.get("head") else None,
    )
    if not settings["original_classifier"]:
        network._set_classifier(network.classifier_module, settings["outputs"])
    if settings["frozen_batch_norm"]:
        network.freeze_batch_norm(settings.get("epsilon"))
    compressed = settings.get("compressed", {})
    compression.put_empty_pairs(network, compressed, network.linear_layers.values())
    return network


def build_network(settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> Network:
    """A network from a model file's architecture settings and tensors.

    Args:
        settings: of :meth:`Network.settings`.
        tensors: of :meth:`Network.tensors`, as arrays.

    Raises:
        SettingError: settings or tensors are not those of a network of ours.
    """
    with refusing_unfit(Network):
        values = from_arrays(tensors)
        mean_image = values.pop(_MEAN_IMAGE, None)
        network = empty_network(settings, mean_image)
        network.load_state_dict(values)
    return network
