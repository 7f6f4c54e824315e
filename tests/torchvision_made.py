"""torchvision's Faster R-CNN with random weights that find many objects, with spread scores."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import (
    _resnet_fpn_extractor,
    resnet_fpn_backbone,
)
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    fasterrcnn_mobilenet_v3_large_fpn,
)
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck


def random_detector(
    name: str = "resnet18", classes: int = 4, seed: int = 0, *, loud: bool = True, **more: Any
) -> FasterRCNN:
    """In evaluation mode; its batch norms have values that matter."""
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(
        backbone_name=name, weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    model = FasterRCNN(backbone, num_classes=classes, **more)
    if loud:
        make_loud(model, seed)
    return model.eval()


def random_v2(
    name: str = "resnet18", classes: int = 4, seed: int = 0, *, loud: bool = True, **more: Any
) -> FasterRCNN:
    """As ``fasterrcnn_resnet50_fpn_v2`` builds it, on any residual network."""
    torch.manual_seed(seed)
    body = getattr(torchvision.models, name)()
    backbone = _resnet_fpn_extractor(body, 5, norm_layer=nn.BatchNorm2d)
    head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d)
    model = FasterRCNN(
        backbone, num_classes=classes, rpn_head=RPNHead(256, 3, conv_depth=2), box_head=head, **more
    )
    if loud:
        make_loud(model, seed)
    return model.eval()


def random_mobile(classes: int = 4, seed: int = 0, *, loud: bool = True, **more: Any) -> FasterRCNN:
    """``fasterrcnn_mobilenet_v3_large_fpn``."""
    torch.manual_seed(seed)
    model = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=classes, **more
    )
    if loud:
        make_loud(model, seed)
    return model.eval()


def make_loud(model: FasterRCNN, seed: int) -> None:
    """Give batch norms values, and each output a spread over the regions of an image.

    Rounding grows on its way through layers whose values hardly differ, as random ones' do.
    """
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of the one image below
            nn.init.uniform_(module.weight, 0.8, 1.2, generator=random)
            nn.init.normal_(module.bias, 0, 0.2, generator=random)
    for module in model.backbone.body.modules():
        if isinstance(module, Bottleneck | BasicBlock):  # what training would make small as well
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            last.weight.data *= 0.2
    image = interpolate(torch.randn((1, 3, 20, 28), generator=random), size=(224, 320))
    corners = torch.rand((200, 2, 2), generator=random) * torch.tensor([320.0, 224])
    boxes = torch.cat((corners.amin(1), corners.amax(1) + 8), dim=1)
    heads, predictor = model.roi_heads.box_head, model.roi_heads.box_predictor
    with torch.no_grad():
        model.backbone.train()(image)
        maps = model.backbone.eval()(image)
        hidden = maps["1"]
        for block in model.rpn.head.conv:
            hidden = _spread(block[0], hidden, 1.0).relu()
        _spread(model.rpn.head.cls_logits, hidden, 2.0)
        _spread(model.rpn.head.bbox_pred, hidden, 0.2)
        pooled = model.roi_heads.box_roi_pool(maps, [boxes], [(224, 320)])
        if isinstance(heads, FastRCNNConvFCHead):
            heads.train()(pooled)
            for block in list(heads.eval())[:4]:
                pooled = block(pooled)
        pooled = pooled.flatten(1)
        for layer in (one for one in heads.modules() if isinstance(one, nn.Linear)):
            pooled = _spread(layer, pooled, 1.0).relu()
        _spread(predictor.cls_score, pooled, 1.0)
        _spread(predictor.bbox_pred, pooled, 0.5)
    model.roi_heads.box_roi_pool.scales = None  # it keeps those of the first image that it sees


def _spread(layer: nn.Module, values: Tensor, deviation: float) -> Tensor:
    """Give each output of a layer a mean of 0 and a deviation over some values; these outputs."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert layer.bias is not None
    layer.bias.zero_()
    outputs = layer(values).movedim(1, -1).flatten(0, -2)  # (values, outputs)
    factor = deviation / outputs.std(dim=0)
    layer.weight *= factor.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias -= outputs.mean(dim=0) * factor
    found: Tensor = layer(values)
    return found
