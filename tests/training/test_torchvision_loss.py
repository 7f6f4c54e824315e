"""Training against torchvision's from the same values: losses, gradients, and some steps."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from rcnnpipe.images import read_image
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.rpn import ProposalRules
from rcnnpipe.models.rpn_targets import AnchorRules
from rcnnpipe.models.torchvision_detectors import import_detector
from rcnnpipe.models.torchvision_layouts import layout_of
from rcnnpipe.systems import fpn
from rcnnpipe.systems.rcnn import Sampling
from rcnnpipe.training.detecting import DetectionLoss, RpnTraining
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.finetuning import new_trainer
from rcnnpipe.training.image_batches import ImageSource
from tests.torchvision_made import random_detector
from tests.training import test_image_batches
from tests.training.made import draw_records

SIDE = 160
ALL = 10**6  # so many are sampled that nothing is left to chance
BETA = 1 / 9  # theirs is fixed
NAMES = {
    "loss_classifier": "class-loss",
    "loss_box_reg": "box-loss",
    "loss_objectness": "objectness-loss",
    "loss_rpn_box_reg": "rpn-box-loss",
}
# A decay that is seen after two steps.
SOLVER = replace(fpn.SOLVER, iterations=4, step=3, warm_up=1, weight_decay=0.2)
FIXED = (".bn", "downsample.1", "network.conv1", "layer1.")


@dataclass(frozen=True)
class Both:
    """The same detector twice, and the same images for both."""

    theirs: FasterRCNN
    detector: Detector
    source: ImageSource
    loss: DetectionLoss

    def their_losses(self, iteration: int) -> dict[str, Tensor]:
        records = [self.source.records[number] for number, _ in self.source.draw(iteration)]
        images = [torch.from_numpy(read_image(one.path)).permute(2, 0, 1) / 255 for one in records]
        truth = [
            {
                "boxes": torch.from_numpy(one.boxes).float(),
                "labels": torch.from_numpy(one.labels),
            }
            for one in records
        ]
        losses: dict[str, Tensor] = self.theirs(images, truth)
        return losses


def both_of(folder: Path, images: int, proposals: int) -> Both:
    """Everything is sampled, and batch norms stay as they are."""
    records = draw_records(folder, images)
    model = random_detector(
        *("resnet18", 3),
        min_size=SIDE,
        max_size=2 * SIDE,
        rpn_pre_nms_top_n_train=proposals,
        rpn_post_nms_top_n_train=proposals,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_positive_fraction=0.5,
    )
    tensors = {name: values.clone() for name, values in model.state_dict().items()}
    shapes = {name: tuple(values.shape) for name, values in tensors.items()}
    detector = import_detector("resnet18", 3, "weights", shapes, tensors.__getitem__).train()
    view = replace(detector.parts.view, scales=(SIDE,), longest=2 * SIDE)
    detector.parts = replace(detector.parts, view=view)

    # Ours are frozen, theirs in evaluation mode.
    model.rpn.train()
    model.roi_heads.train()
    model.transform.train()
    model.training = True
    source = test_image_batches.source_of(
        records,
        proposals=[np.empty((0, 4), np.float32)] * images,
        view=view,
        preprocessing=detector.network.preprocessing,
        images=2,
        mirror=False,
    )
    rules = fpn.TRAINING | {"before": proposals, "keep": proposals}
    rpn = RpnTraining(
        AnchorRules(batch=ALL, straddle="keep"), ProposalRules(**rules, **fpn.PER_LEVEL)
    )
    sampling = Sampling(batch_size=2 * ALL, foreground=ALL, background_from=0.0)
    return Both(model, detector, source, DetectionLoss(detector, sampling, 2, beta=BETA, rpn=rpn))


def test_losses_and_gradients_are_torchvisions(tmp_path: Path) -> None:
    both = both_of(tmp_path, 2, 500)
    theirs = both.their_losses(0)
    torch.stack(list(theirs.values())).sum().backward()  # type: ignore[no-untyped-call]
    (batch,) = both.source.batches(0, 1)
    (piece,) = batch.pieces
    ours = both.loss(piece)
    ours.loss.backward()  # type: ignore[no-untyped-call]

    # Some ten and, of gradients, six times what was measured, for processors round otherwise.
    for their_name, name in NAMES.items():
        value, count = ours.shares[name]
        assert float(value / count) == pytest.approx(float(theirs[their_name].detach()), rel=1e-5)
    gradients = {name: values.grad for name, values in both.theirs.named_parameters()}
    layout = layout_of(both.detector)
    compared = 0
    for name, values in both.detector.named_parameters():
        expected = gradients[layout.their_name(name)]
        if values.grad is None:
            continue
        assert expected is not None, name
        assert float((values.grad - expected).norm() / expected.norm()) < 1e-3, name
        compared += 1
    assert compared == 50  # 20 convolutions, and pairs: 8 of the neck, 3 of the RPN, 4 of the head


def test_steps_are_torchvisions(tmp_path: Path) -> None:
    """Rates, momentum and decay too: losses stay the same while both learn."""
    both, rate = both_of(tmp_path, 6, 50), 0.002
    layout = layout_of(both.detector)
    known = dict(both.theirs.named_parameters())
    learnt = []
    for name, values in both.detector.named_parameters():
        values.requires_grad = not any(part in name for part in FIXED)
        known[layout.their_name(name)].requires_grad = values.requires_grad
        learnt += [known[layout.their_name(name)]] if values.requires_grad else []
    solver = replace(SOLVER, learning_rate=rate)
    trainer = new_trainer(both.detector, solver, Ranks(0, 1, torch.device("cpu")))
    decay, momentum = solver.weight_decay, solver.momentum
    optimizer = torch.optim.SGD(learnt, lr=rate, momentum=momentum, weight_decay=decay)

    first = last = 0.0
    rates = [rate / 3, rate, rate, rate / 10]
    for number, batch in enumerate(both.source.batches(0, 4)):
        theirs = both.their_losses(number)
        loss = torch.stack(list(theirs.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = rates[number]
        optimizer.step()
        trainer.step(batch.pieces, both.loss)
        ours = trainer.log()
        for their_name, name in NAMES.items():
            expected = float(theirs[their_name].detach())
            assert ours[name] == pytest.approx(expected, rel=2e-3, abs=1e-5), (number, name)
        first, last = first or ours["loss"], ours["loss"]
    assert last < 0.9 * first
