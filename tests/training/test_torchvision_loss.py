"""One step of training against torchvision's: the same losses and gradients of the same values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rcnnpipe.images import read_image
from rcnnpipe.models.rpn import ProposalRules
from rcnnpipe.models.rpn_targets import AnchorRules
from rcnnpipe.models.torchvision_detectors import import_detector
from rcnnpipe.models.torchvision_layouts import layout_of
from rcnnpipe.systems import fpn
from rcnnpipe.systems.rcnn import Sampling
from rcnnpipe.training.detecting import DetectionLoss, RpnTraining
from tests.torchvision_made import random_detector
from tests.training import test_image_batches
from tests.training.made import draw_records

SIDE, PROPOSALS = 160, 500
ALL = 10**6  # so many are sampled that nothing is left to chance
BETA = 1 / 9  # theirs is fixed
# Below: some ten and six times what was measured, for processors round otherwise.


def test_losses_and_gradients_are_torchvisions(tmp_path: Path) -> None:
    records = draw_records(tmp_path, 2)
    model = random_detector(
        *("resnet18", 3),
        min_size=SIDE,
        max_size=2 * SIDE,
        rpn_pre_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_positive_fraction=0.5,
    )
    tensors = model.state_dict()
    shapes = {name: tuple(values.shape) for name, values in tensors.items()}
    detector = import_detector("resnet18", 3, "weights", shapes, tensors.__getitem__).train()
    view = replace(detector.parts.view, scales=(SIDE,), longest=2 * SIDE)
    detector.parts = replace(detector.parts, view=view)

    # Batch norms stay as they are: ours are frozen, theirs in evaluation mode.
    model.rpn.train()
    model.roi_heads.train()
    model.transform.train()
    model.training = True
    images = [torch.from_numpy(read_image(one.path)).permute(2, 0, 1) / 255 for one in records]
    truth = [
        {
            "boxes": torch.from_numpy(one.boxes).float(),
            "labels": torch.from_numpy(one.labels),
        }
        for one in records
    ]
    theirs = model(images, truth)
    torch.stack(list(theirs.values())).sum().backward()  # type: ignore[no-untyped-call]

    source = test_image_batches.source_of(
        records,
        proposals=[np.empty((0, 4), np.float32)] * 2,
        view=view,
        preprocessing=detector.network.preprocessing,
        images=2,
        mirror=False,
    )
    (batch,) = source.batches(0, 1)
    (piece,) = batch.pieces
    rules = fpn.TRAINING | {"before": PROPOSALS, "keep": PROPOSALS}
    rpn = RpnTraining(
        AnchorRules(batch=ALL, straddle="keep"), ProposalRules(**rules, **fpn.PER_LEVEL)
    )
    sampling = Sampling(batch_size=2 * ALL, foreground=ALL, background_from=0.0)
    ours = DetectionLoss(detector, sampling, 2, beta=BETA, rpn=rpn)(piece)
    ours.loss.backward()  # type: ignore[no-untyped-call]

    named = {
        "loss_classifier": "class-loss",
        "loss_box_reg": "box-loss",
        "loss_objectness": "objectness-loss",
        "loss_rpn_box_reg": "rpn-box-loss",
    }
    for their_name, name in named.items():
        value, count = ours.shares[name]
        assert float(value / count) == pytest.approx(float(theirs[their_name].detach()), rel=1e-5)
    gradients = {name: values.grad for name, values in model.named_parameters()}
    layout = layout_of(detector)
    compared = 0
    for name, values in detector.named_parameters():
        expected = gradients[layout.their_name(name)]
        if values.grad is None:
            continue
        assert expected is not None, name
        assert float((values.grad - expected).norm() / expected.norm()) < 1e-3, name
        compared += 1
    assert compared == 50  # 20 convolutions, and pairs: 8 of the neck, 3 of the RPN, 4 of the head
