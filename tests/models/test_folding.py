"""Folding batch norms changes nothing but the rounding."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from rcnnpipe.models.backbones import create_network
from rcnnpipe.models.folding import fold_batch_norm


@pytest.mark.parametrize("frozen", [False, True])
def test_a_folded_network_gives_the_same_features(frozen: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    network = create_network("resnet18", 5, generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias):
                values.data.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr, operator]
            for values in (module.running_var, module.weight):
                values.data.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr, operator]
    if frozen:
        network.freeze_batch_norm()
    windows = torch.randn(2, 3, 96, 96, generator=generator)
    with torch.inference_mode():
        expected = network(windows, ["layer2", "pool5", "logits"])
        fold_batch_norm(network)
        found = network(windows, ["layer2", "pool5", "logits"])
    assert not any(
        isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d) for module in network.modules()
    )
    for layer, values in expected.items():
        scale = values.abs().max().item()
        torch.testing.assert_close(found[layer], values, atol=2e-5 * scale, rtol=0)
