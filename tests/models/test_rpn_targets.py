"""Labels, samples and losses of anchors: torchvision's, slow references, the sheets' mistakes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork

from rcnnpipe.boxes import encode, iou
from rcnnpipe.errors import SettingError
from rcnnpipe.models.anchors import Anchors
from rcnnpipe.models.rpn_targets import AnchorRules, label_anchors, rpn_loss, sample_anchors
from rcnnpipe.randomness import generator
from tests.reference import rpn as slow

SIZE = (96, 128)  # (height, width)
ANCHORS = torch.cat(
    Anchors(((16,), (32,), (64,))).boxes([(12, 16), (6, 8), (3, 4)], [(8, 8), (16, 16), (32, 32)])
)
DROP, KEEP = AnchorRules(), AnchorRules(straddle="keep")
NONE = torch.zeros(0, 4)


def some_boxes(random: np.random.Generator, number: int, least: int = 8) -> Tensor:
    """Boxes with whole corners within the image."""
    low = random.integers(0, (SIZE[1] - 60, SIZE[0] - 60), (number, 2))
    return torch.from_numpy(
        np.hstack((low, low + random.integers(least, 60, (number, 2)))).astype(np.float32)
    )


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


# Labels


@pytest.mark.parametrize("rules", [DROP, KEEP, AnchorRules(positive=0.5, negative=0.1)], ids=str)
@pytest.mark.parametrize("crowds", [0, 2])
def test_labels_equal_the_slow_reference(rules: AnchorRules, crowds: int) -> None:
    seen: set[int] = set()
    for seed in range(6):
        random = np.random.default_rng(seed)
        truth, ignored = some_boxes(random, seed), some_boxes(random, crowds, 40)
        labels, matched = label_anchors(ANCHORS, truth, ignored, SIZE, rules)
        expected = slow.label(
            *(ANCHORS.tolist(), truth.tolist(), ignored.tolist(), SIZE),
            (rules.positive, rules.negative),
            rules.straddle == "drop",
        )
        assert labels.dtype == matched.dtype == torch.int64
        assert labels.tolist() == expected[0]
        assert matched.tolist() == expected[1]
        seen |= set(expected[0])
    assert seen == {-1, 0, 1}


def their_network(rules: AnchorRules) -> RegionProposalNetwork:
    counts = {"training": 1, "testing": 1}
    thresholds = (rules.positive, rules.negative, rules.batch, rules.fraction)
    return RegionProposalNetwork(None, None, *thresholds, counts, counts, 0.7)


def test_labels_are_torchvisions() -> None:
    for seed in range(5):
        truth = some_boxes(np.random.default_rng(seed), 7)
        labels, matched = label_anchors(ANCHORS, truth, NONE, SIZE, KEEP)
        (theirs,), (target,) = their_network(KEEP).assign_targets_to_anchors(
            [ANCHORS], [{"boxes": truth}]
        )
        assert labels.tolist() == theirs.tolist()
        assert torch.equal(truth[matched][labels == 1], target[labels == 1])


def test_thresholds_by_value() -> None:
    # The object is 10 x 10 at the origin; the anchors cover so many hundredths of it.
    truth = boxes((0, 0, 10, 10))
    anchors = boxes((0, 0, 10, 8), (0, 0, 10, 7), (0, 0, 10, 6.9), (0, 0, 10, 3), (0, 0, 10, 2.9))
    labels, _ = label_anchors(anchors, truth, NONE, (50, 50), DROP)
    assert labels.tolist() == [1, 1, -1, -1, 0]


def test_the_best_anchors_of_an_object_are_positive_whatever_their_overlap() -> None:
    # Sheet, section 13: the rule is forgotten, or negatives are written over it.
    truth = boxes((20, 20, 24, 24))
    anchors = boxes((10, 10, 30, 30), (14, 14, 34, 34), (23, 20, 43, 40), (60, 60, 80, 80))
    assert iou(anchors, truth).flatten().tolist() == pytest.approx([0.04, 0.04, 4 / 412, 0])
    labels, _ = label_anchors(anchors, truth, NONE, (100, 100), DROP)
    assert labels.tolist() == [1, 1, 0, 0]  # both that are equally good


def test_the_best_is_the_best_of_all_maps() -> None:
    truth = boxes((10, 10, 30, 30))
    fine, coarse = boxes((8, 8, 24, 24)), boxes((8, 8, 32, 32))
    labels, _ = label_anchors(torch.cat((fine, coarse)), truth, NONE, (100, 100), DROP)
    assert labels.tolist() == [-1, 1]


def test_an_object_that_no_anchor_touches_makes_none_positive() -> None:
    # Sheet, section 3: its maximum is 0, which all anchors share.
    truth = boxes((90, 90, 99, 99), (10, 10, 30, 30))
    anchors = boxes((10, 10, 30, 30), (40, 40, 60, 60), (0, 50, 20, 70))
    for objects, expected in ((truth, [1, 0, 0]), (truth[:1], [0, 0, 0])):
        labels, _ = label_anchors(anchors, objects, NONE, (100, 100), DROP)
        assert labels.tolist() == expected


def test_an_anchor_leads_to_its_own_best_object() -> None:
    # The anchor is the small object's best, but has more in common with the large one.
    truth = boxes((0, 0, 20, 20), (16, 0, 26, 10))
    anchors = boxes((2, 0, 22, 20), (50, 50, 70, 70))
    overlaps = iou(anchors, truth)
    assert overlaps[0, 0] > overlaps[0, 1] > 0
    labels, matched = label_anchors(anchors, truth, NONE, (100, 100), DROP)
    assert labels.tolist() == [1, 0]
    assert matched.tolist() == [0, 0]
    labels, matched = label_anchors(anchors, truth.flip(0), NONE, (100, 100), DROP)
    assert matched.tolist() == [1, 0]
    # Of equals, the first.
    _, matched = label_anchors(anchors, truth[[1, 0, 0]], NONE, (100, 100), DROP)
    assert matched[0] == 1


BORDER = boxes((0, 0, 50, 40), (-1, 0, 49, 40), (0, -1, 50, 39), (1, 0, 51, 40), (0, 1, 50, 41))


def test_anchors_over_the_border() -> None:
    # An inclusive x2 < W is a continuous x2 <= W.
    labels, _ = label_anchors(BORDER, NONE, NONE, (40, 50), DROP)
    assert labels.tolist() == [0, -1, -1, -1, -1]
    labels, _ = label_anchors(BORDER, NONE, NONE, (40, 50), KEEP)
    assert labels.tolist() == [0] * 5
    # One that is left out cannot be an object's best, nor keep another from it.
    truth = BORDER[1:2]
    labels, matched = label_anchors(BORDER, truth, NONE, (40, 50), replace(DROP, positive=1))
    assert labels.tolist() == [1, -1, -1, -1, -1]
    assert matched.tolist() == [0] * 5
    labels, _ = label_anchors(BORDER, truth, NONE, (40, 50), replace(KEEP, positive=1))
    assert labels.tolist() == [-1, 1, -1, -1, -1]


def test_all_anchors_may_be_over_the_border() -> None:
    for truth in (BORDER[:2], NONE):
        labels, matched = label_anchors(BORDER[1:], truth, BORDER, (40, 50), DROP)
        assert labels.tolist() == [-1] * 4
        assert matched.tolist() == [0] * 4


def test_crowds_are_no_background_but_objects_stay() -> None:
    anchors = boxes((0, 0, 10, 10), (5, 0, 15, 10), (6, 0, 16, 10), (0, 20, 10, 30))
    crowd = boxes((0, 0, 10, 10))  # 1, .5 (not more than half), .4 and none of their areas
    labels, _ = label_anchors(anchors, NONE, crowd, (50, 50), DROP)
    assert labels.tolist() == [-1, 0, 0, 0]
    # The size of the crowd is of no account: the anchor's share counts.
    labels, _ = label_anchors(anchors, NONE, boxes((0, 0, 50, 50)), (50, 50), DROP)
    assert labels.tolist() == [-1] * 4
    # An object in the crowd keeps its anchor.
    labels, _ = label_anchors(anchors, anchors[:1], boxes((0, 0, 50, 50)), (50, 50), DROP)
    assert labels.tolist() == [1, -1, -1, -1]
    # Halves of two crowds are no crowd.
    halves = boxes((0, 20, 5, 30), (5, 20, 10, 30))
    labels, _ = label_anchors(anchors, NONE, halves, (50, 50), DROP)
    assert labels.tolist() == [0] * 4


def test_an_image_without_objects_is_background() -> None:
    labels, matched = label_anchors(ANCHORS, NONE, NONE, SIZE, KEEP)
    assert (labels == 0).all()
    assert (matched == 0).all()


# Samples


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        (500, 5000, (128, 128)),
        (20, 5000, (20, 236)),  # background takes the places
        (0, 5000, (0, 256)),
        (500, 30, (128, 30)),  # but objects do not
        (5, 10, (5, 10)),
        (0, 0, (0, 0)),
        (128, 128, (128, 128)),
    ],
)
def test_so_many_are_sampled(positive: int, negative: int, expected: tuple[int, int]) -> None:
    ordered = np.repeat([1, 0, -1], [positive, negative, 300])
    labels = torch.from_numpy(np.random.default_rng(0).permutation(ordered))
    positives, negatives = sample_anchors(labels, DROP, generator(0, "anchors"))
    assert (len(positives), len(negatives)) == expected
    assert positives.dtype == negatives.dtype == torch.int64
    assert (labels[positives] == 1).all()
    assert (labels[negatives] == 0).all()
    for rows in (positives, negatives):
        assert (rows.diff() > 0).all()  # none twice


def test_samples_follow_the_generator() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, 3000))
    first = sample_anchors(labels, DROP, generator(0, "anchors", "image"))
    again = sample_anchors(labels, DROP, generator(0, "anchors", "image"))
    other = sample_anchors(labels, DROP, generator(0, "anchors", "another"))
    for number in range(2):
        assert torch.equal(first[number], again[number])
        assert not torch.equal(first[number], other[number])


def test_every_anchor_is_as_likely() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 1, 0, -1, 0, 1])
    rules = AnchorRules(batch=4)
    counts = torch.zeros(10)
    random = generator(0, "anchors")
    for _ in range(2000):
        for rows in sample_anchors(labels, rules, random):
            counts[rows] += 1
    assert counts[labels == 1].tolist() == pytest.approx([1000] * 4, rel=0.1)
    assert counts[labels == 0].tolist() == pytest.approx([800] * 5, rel=0.1)
    assert counts[7] == 0


# Losses


def a_batch(seed: int) -> tuple[Tensor, ...]:
    """Logits, deltas, truth, matched and samples for the anchors."""
    random = np.random.default_rng(seed)
    truth = some_boxes(random, 5)
    labels, matched = label_anchors(ANCHORS, truth, NONE, SIZE, DROP)
    logits = torch.from_numpy(random.normal(0, 3, len(ANCHORS)).astype(np.float32))
    deltas = torch.from_numpy(random.normal(0, 0.5, (len(ANCHORS), 4)).astype(np.float32))
    return logits, deltas, truth, matched, *sample_anchors(labels, DROP, random)


@pytest.mark.parametrize("sigma", [3.0, 1.0])
def test_losses_equal_the_slow_reference(sigma: float) -> None:
    rules = AnchorRules(beta=1 / sigma**2, box_weight=256 / 240)
    for seed in range(4):
        logits, deltas, truth, matched, positives, negatives = a_batch(seed)
        found = rpn_loss(*(logits, deltas, ANCHORS, truth, matched, positives, negatives), rules)
        expected = slow.loss(
            *(logits.tolist(), deltas.tolist(), ANCHORS.tolist(), truth[matched].tolist()),
            *(positives.tolist(), negatives.tolist(), sigma),
        )
        assert len(positives) > 0
        assert found[0].item() == pytest.approx(expected[0], rel=1e-5)
        assert found[1].item() == pytest.approx(expected[1] * 256 / 240, rel=1e-5)


def test_losses_are_torchvisions() -> None:
    logits, deltas, truth, matched, positives, negatives = a_batch(0)
    labels = torch.full((len(ANCHORS),), -1.0)
    labels[positives], labels[negatives] = 1, 0
    # All that are left are few enough for theirs to take each.
    theirs = their_network(DROP).compute_loss(
        logits, deltas, [labels], [encode(ANCHORS, truth[matched])]
    )
    ours = rpn_loss(logits, deltas, ANCHORS, truth, matched, positives, negatives, DROP)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_weight_of_an_anchor_is_the_codes() -> None:
    # Sheet, section 4: 1 / 256 for each positive anchor; the paper has 1 / 240.
    anchors = boxes((0, 0, 10, 10)).repeat(256, 1)
    deltas = torch.zeros(256, 4)
    deltas[0, 0] = 1
    truth, matched = anchors[:1], torch.zeros(256, dtype=torch.int64)
    rest = (torch.tensor([0]), torch.arange(1, 256))
    _, loss = rpn_loss(torch.zeros(256), deltas, anchors, truth, matched, *rest, DROP)
    assert loss.item() == pytest.approx(0.9444 / 256, rel=1e-4)
    paper = AnchorRules(beta=1, box_weight=256 / 240)
    _, loss = rpn_loss(torch.zeros(256), deltas, anchors, truth, matched, *rest, paper)
    assert loss.item() == pytest.approx(0.5 / 240, rel=1e-6)


def test_losses_are_divided_by_what_is_sampled_not_by_the_batch() -> None:
    anchors = boxes((0, 0, 10, 10)).repeat(4, 1)
    truth, matched = anchors[:1], torch.zeros(4, dtype=torch.int64)
    rest = (torch.tensor([1]), torch.tensor([0, 3]))
    losses = rpn_loss(torch.zeros(4), torch.ones(4, 4), anchors, truth, matched, *rest, DROP)
    # Of three, one is positive with four errors of 1; all answers of .5 cost log 2.
    assert losses[0].item() == pytest.approx(0.693147, abs=1e-6)
    assert losses[1].item() == pytest.approx(4 * 0.944444 / 3, abs=1e-5)


def test_perfect_answers_cost_nothing() -> None:
    _, _, truth, matched, positives, negatives = a_batch(1)
    logits = torch.full((len(ANCHORS),), -50.0)
    logits[positives] = 50
    deltas = encode(ANCHORS, truth[matched])  # raw: nothing is normalised
    losses = rpn_loss(logits, deltas, ANCHORS, truth, matched, positives, negatives, DROP)
    assert [loss.item() for loss in losses] == pytest.approx([0, 0], abs=1e-12)


def test_gradients() -> None:
    logits, deltas, truth, matched, positives, negatives = a_batch(2)
    logits.requires_grad_()
    deltas.requires_grad_()
    rules = AnchorRules(box_weight=2)
    losses = rpn_loss(logits, deltas, ANCHORS, truth, matched, positives, negatives, rules)
    of_logits, of_deltas = torch.autograd.grad(losses[0] + losses[1], (logits, deltas))
    number = len(positives) + len(negatives)
    expected = torch.zeros(len(ANCHORS))
    expected[positives] = (logits[positives].sigmoid() - 1) / number
    expected[negatives] = logits[negatives].sigmoid() / number
    torch.testing.assert_close(of_logits, expected.detach(), atol=1e-7, rtol=1e-4)
    slopes = ((deltas - encode(ANCHORS, truth[matched])) * 9).clamp(-1, 1) * 2 / number
    expected = torch.zeros(len(ANCHORS), 4)
    expected[positives] = slopes[positives].detach()
    torch.testing.assert_close(of_deltas, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("negatives", [0, 3])
def test_losses_without_objects_are_finite(negatives: int) -> None:
    logits = torch.randn(len(ANCHORS), generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    deltas = torch.zeros(len(ANCHORS), 4, requires_grad=True)
    matched = torch.zeros(len(ANCHORS), dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int64)
    losses = rpn_loss(logits, deltas, ANCHORS, NONE, matched, none, torch.arange(negatives), DROP)
    assert losses[1].item() == 0
    assert (losses[0].item() > 0) == (negatives > 0)
    of_logits, of_deltas = torch.autograd.grad(losses[0] + losses[1], (logits, deltas))
    assert of_logits.isfinite().all()
    assert (of_deltas == 0).all()


def test_large_answers_give_finite_losses() -> None:
    logits, deltas, truth, matched, positives, negatives = a_batch(3)
    logits, deltas = (logits * 1e4).requires_grad_(), (deltas * 1e4).requires_grad_()
    losses = rpn_loss(logits, deltas, ANCHORS, truth, matched, positives, negatives, DROP)
    slopes = torch.autograd.grad(losses[0] + losses[1], (logits, deltas))
    assert all(value.isfinite().all() for value in (*losses, *slopes))


def test_half_precision_is_summed_in_float32() -> None:
    logits, deltas, *rest = a_batch(0)
    truth, matched, positives, negatives = rest
    half = logits.bfloat16(), deltas.bfloat16()
    found = rpn_loss(*half, ANCHORS, truth, matched, positives, negatives, DROP)
    rounded = half[0].float(), half[1].float()
    expected = rpn_loss(*rounded, ANCHORS, truth, matched, positives, negatives, DROP)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_nonsense_is_refused() -> None:
    for positive, negative in ((0.3, 0.7), (1.2, 0.3), (0.7, -0.1)):
        with pytest.raises(SettingError, match="give 0 <= background <= objects <= 1"):
            AnchorRules(positive, negative)
    with pytest.raises(SettingError, match="0 anchors an image"):
        AnchorRules(batch=0)
    with pytest.raises(SettingError, match="a fraction in 0 to 1"):
        AnchorRules(fraction=1.5)
    with pytest.raises(SettingError, match="'cut' is none of drop, keep"):
        AnchorRules(straddle="cut")
    for beta, weight in ((-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(SettingError, match="give 0 or more"):
            AnchorRules(beta=beta, box_weight=weight)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same() -> None:
    random = np.random.default_rng(0)
    truth, crowd = some_boxes(random, 5), some_boxes(random, 2, 40)
    labels, matched = label_anchors(ANCHORS, truth, crowd, SIZE, DROP)
    there = label_anchors(ANCHORS.cuda(), truth.cuda(), crowd.cuda(), SIZE, DROP)
    assert torch.equal(labels, there[0].cpu())
    assert torch.equal(matched, there[1].cpu())
    samples = sample_anchors(labels, DROP, generator(0, "anchors"))
    other = sample_anchors(there[0], DROP, generator(0, "anchors"))
    for one, their in zip(samples, other, strict=True):
        assert torch.equal(one, their.cpu())
    logits, deltas = torch.randn(len(ANCHORS)), torch.randn(len(ANCHORS), 4)
    ours = rpn_loss(logits, deltas, ANCHORS, truth, matched, *samples, DROP)
    theirs = rpn_loss(
        *(logits.cuda(), deltas.cuda(), ANCHORS.cuda(), truth.cuda(), there[1]), *other, DROP
    )
    for one, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, their.cpu())
