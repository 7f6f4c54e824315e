"""The head and its proposals: torchvision's, a slow reference, and the sheets' common mistakes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from rcnnpipe import boxes as box_ops
from rcnnpipe.errors import SettingError
from rcnnpipe.models.anchors import Anchors
from rcnnpipe.models.rpn import ProposalRules, RpnHead, SeparateRpnHeads, propose
from tests.reference import rpn as slow

MAPS = [(12, 16), (6, 8), (3, 4)]
STRIDES = [(8, 8), (16, 16), (32, 32)]
SIZES = [(96, 128), (90, 101)]  # (height, width) in a batch of 96 x 128
ANCHORS = Anchors(((16,), (32,), (64,)), placement="torchvision").boxes(MAPS, STRIDES)
PYRAMID_RULES = ProposalRules(
    before=50, keep=40, min_size=1e-3, per_level=True, drop_first=False
)  # torchvision's, but for the numbers
ALL = ProposalRules(before=0, overlap=1, keep=10**6, min_size=0, per_level=True)
# An anchor that no box here suppresses, and one delta that leaves it.
ONE = [torch.tensor([[10.0, 20, 30, 60]])]


def answers(seed: int, images: int = 2, spread: float = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Random logits and deltas for the anchors of three maps."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn((images, len(one)), generator=generator) * 2 for one in ANCHORS]
    deltas = [torch.randn((images, len(one), 4), generator=generator) * spread for one in ANCHORS]
    return logits, deltas


def single(logit: float, *deltas: float) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.tensor([[logit]])], [torch.tensor([[deltas]])]


# The head


def test_the_head_has_the_papers_layers() -> None:
    head = RpnHead(512, 256, 9)
    shapes = {name: tuple(value.shape) for name, value in head.named_parameters()}
    assert shapes == {
        "conv.weight": (256, 512, 3, 3),
        "conv.bias": (256,),
        "objectness.weight": (9, 256, 1, 1),
        "objectness.bias": (9,),
        "deltas.weight": (36, 256, 1, 1),
        "deltas.bias": (36,),
    }


def test_first_values() -> None:
    head, again = RpnHead(64, 64, 9), RpnHead(64, 64, 9)
    for one in (head, again):
        one.initialise(torch.Generator().manual_seed(3))
    for name, value in head.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
        if name.endswith("bias"):
            assert (value == 0).all()
    assert head.get_parameter("conv.weight").std().item() == pytest.approx(0.01, rel=0.05)
    assert head.deltas.weight.std().item() == pytest.approx(0.01, rel=0.05)


def their_head(head: RpnHead) -> RPNHead:
    """torchvision's with our weights."""
    theirs = RPNHead(head.conv.in_channels, head.objectness.out_channels)
    names = {"conv": "conv.0.0", "objectness": "cls_logits", "deltas": "bbox_pred"}
    theirs.load_state_dict(
        {
            f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value
            for key, value in head.state_dict().items()
        }
    )
    return theirs


def test_outputs_stand_in_the_order_of_the_anchors() -> None:
    head = RpnHead(2, 2, 3)
    with torch.no_grad():
        for value in head.parameters():
            value.zero_()
        head.get_parameter("conv.weight")[0, 0, 1, 1] = 1  # hidden 0 is the map's first channel
        head.objectness.weight[:, 0, 0, 0] = 1
        head.get_parameter("objectness.bias").copy_(torch.tensor([0.0, 0.1, 0.2]))
        head.deltas.weight[:, 0, 0, 0] = 1
        head.get_parameter("deltas.bias").copy_(torch.arange(12) / 100)
    height, width = 4, 5
    cells = torch.arange(2 * height * width, dtype=torch.float32).view(2, 1, height, width)
    maps = torch.cat((cells, torch.zeros_like(cells)), dim=1)
    (logits,), (deltas,) = head([maps])
    assert logits.shape == (2, 60)
    assert deltas.shape == (2, 60, 4)
    for image, y, x, anchor in ((0, 0, 1, 2), (0, 3, 2, 0), (1, 2, 4, 1)):
        place = (y * width + x) * 3 + anchor
        cell = float(cells[image, 0, y, x])
        assert logits[image, place].item() == pytest.approx(cell + anchor / 10)
        expected = [cell + (4 * anchor + number) / 100 for number in range(4)]
        assert deltas[image, place].tolist() == pytest.approx(expected)


def test_one_head_serves_all_maps() -> None:
    head = RpnHead(8, 8, 3)
    head.initialise(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn((2, 8, *size), generator=generator) for size in MAPS]
    logits, deltas = head(maps)
    for level, one in enumerate(maps):
        (own_logits,), (own_deltas,) = head([one])
        assert torch.equal(logits[level], own_logits)
        assert torch.equal(deltas[level], own_deltas)
        assert own_logits.shape[1] == len(ANCHORS[level])


def test_separate_heads_serve_their_own_maps() -> None:
    heads = SeparateRpnHeads(2, 8, 8, 3)
    heads.initialise(torch.Generator().manual_seed(0))
    maps = [torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4)]
    logits, deltas = heads(maps)
    for number, head in enumerate(heads.heads):
        (own,), (moves,) = head(maps[number : number + 1])
        assert torch.equal(logits[number], own)
        assert torch.equal(deltas[number], moves)
        other, _ = heads.heads[1 - number](maps[number : number + 1])
        assert not torch.equal(own, other[0])
    with pytest.raises(ValueError, match="shorter"):
        heads(maps[:1])


def test_a_sigmoid_of_the_difference_is_the_authors_softmax() -> None:
    pair = torch.randn((100, 2), generator=torch.Generator().manual_seed(0))  # background first
    torch.testing.assert_close((pair[:, 1] - pair[:, 0]).sigmoid(), pair.softmax(dim=1)[:, 1])


# Against torchvision


def their_network(rules: ProposalRules, head: nn.Module | None = None) -> RegionProposalNetwork:
    sizes = ((16,), (32,), (64,))
    network = RegionProposalNetwork(
        AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3),
        head,
        *(0.7, 0.3, 256, 0.5),
        *({"training": rules.before, "testing": rules.before},),
        *({"training": rules.keep, "testing": rules.keep},),
        rules.overlap,
    )
    network.min_size = rules.min_size
    return network.eval()


def assert_same(
    ours: list[tuple[Tensor, Tensor]], boxes: list[Tensor], scores: list[Tensor]
) -> None:
    for (own_boxes, own_scores), their_boxes, their_scores in zip(ours, boxes, scores, strict=True):
        torch.testing.assert_close(own_boxes, their_boxes, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(own_scores, their_scores, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("min_size", [1e-3, 20.0])
@pytest.mark.parametrize(("before", "keep"), [(50, 40), (20, 1000), (10**6, 300), (10**6, 7)])
def test_proposals_are_torchvisions(before: int, keep: int, min_size: float) -> None:
    rules = replace(PYRAMID_RULES, before=before, keep=keep, min_size=min_size)
    for seed in range(5):
        logits, deltas = answers(seed, spread=0.7)
        flat = BoxCoder((1.0, 1, 1, 1)).decode(
            torch.cat(deltas, dim=1).flatten(0, 1), [torch.cat(ANCHORS)] * 2
        )
        boxes, scores = their_network(rules).filter_proposals(
            flat.view(2, -1, 4), torch.cat(logits, dim=1), SIZES, [len(one) for one in ANCHORS]
        )
        ours = propose(logits, deltas, ANCHORS, SIZES, [1, 1], rules)
        assert_same(ours, boxes, scores)
        assert min(len(one) for one in scores) > 5
        if before > 1000:  # then it does not matter what comes first
            first = propose(logits, deltas, ANCHORS, SIZES, [1, 1], replace(rules, drop_first=True))
            assert_same(first, boxes, scores)


def test_a_whole_network_gives_torchvisions_proposals() -> None:
    head = RpnHead(8, 8, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in head.parameters():
            value.normal_(0, 0.3, generator=generator)
        maps = [torch.randn((2, 8, *size), generator=generator) for size in MAPS]
        boxes, _ = their_network(PYRAMID_RULES, their_head(head))(
            ImageList(torch.zeros(2, 3, 96, 128), SIZES),
            {str(number): one for number, one in enumerate(maps)},
        )
        logits, deltas = head(maps)
    found = propose(logits, deltas, ANCHORS, SIZES, [1, 1], PYRAMID_RULES)
    for (ours, _), theirs in zip(found, boxes, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)


# Against a slow reference

VARIANTS = [
    ProposalRules(before=30, keep=25, min_size=8, per_level=True),
    ProposalRules(before=30, keep=25, min_size=8, per_level=True, drop_first=False),
    ProposalRules(before=30, keep=25, min_size=8, per_level=False),
    ProposalRules(before=0, overlap=0.3, keep=1000, min_size=5, per_level=False),
    ProposalRules(before=0, overlap=0.3, keep=1000, min_size=5, per_level=True),
    ProposalRules(before=7, overlap=0.5, keep=5, min_size=0, per_level=True),
]


@pytest.mark.parametrize("rules", VARIANTS, ids=str)
def test_proposals_equal_the_slow_reference(rules: ProposalRules) -> None:
    scales = [1.5, 2.0]
    for seed in range(3):
        logits, deltas = answers(seed, spread=0.7)
        found = propose(logits, deltas, ANCHORS, SIZES, scales, rules)
        for image, (boxes, scores) in enumerate(found):
            expected_boxes, expected_scores = slow.proposals(
                [one[image].tolist() for one in logits],
                [one[image].tolist() for one in deltas],
                [one.tolist() for one in ANCHORS],
                SIZES[image],
                max(rules.min_size * scales[image], 1e-9),
                rules,
            )
            assert len(boxes) == len(expected_boxes) > 0
            torch.testing.assert_close(boxes, torch.tensor(expected_boxes), atol=1e-3, rtol=1e-5)
            assert scores.tolist() == pytest.approx(expected_scores, abs=1e-6)


# What proposals promise


@pytest.mark.parametrize("rules", [*VARIANTS, ALL], ids=str)
def test_proposals_are_sorted_boxes_within_their_image(rules: ProposalRules) -> None:
    logits, deltas = answers(0, spread=3)
    found = propose(logits, deltas, ANCHORS, SIZES, [1, 1], rules)
    for (height, width), (boxes, scores) in zip(SIZES, found, strict=True):
        assert boxes.dtype == scores.dtype == torch.float32
        assert 0 < len(boxes) == len(scores) <= rules.keep
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= rules.min_size).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (scores.diff() <= 0).all()


def test_images_do_not_share_their_caps() -> None:
    # Feature pyramid sheet, section 3: Detectron's cap over a batch is a quirk.
    logits, deltas = answers(0)
    logits[0][1] += 30
    together = propose(logits, deltas, ANCHORS, SIZES, [1, 2], PYRAMID_RULES)
    for image, (boxes, scores) in enumerate(together):
        one = slice(image, image + 1)
        own_logits, own_deltas = [level[one] for level in logits], [level[one] for level in deltas]
        (alone,) = propose(own_logits, own_deltas, ANCHORS, SIZES[one], [image + 1], PYRAMID_RULES)
        assert len(boxes) == PYRAMID_RULES.keep
        assert torch.equal(boxes, alone[0])
        assert torch.equal(scores, alone[1])


def test_keep_is_over_the_maps_and_before_of_each() -> None:
    anchors = [torch.arange(5)[:, None] * 20 + torch.tensor([0.0, 0, 9, 9])] * 2
    logits = [torch.tensor([[9.0, 8, 7, 6, 5]]), torch.tensor([[4.5, 5.5, 3, 2, 1]])]
    deltas = [torch.zeros(1, 5, 4)] * 2
    rules = ProposalRules(before=3, keep=5, min_size=0, per_level=True)
    ((_, scores),) = propose(logits, deltas, anchors, [(200, 200)], [1], rules)
    expected = torch.tensor([9.0, 8, 7, 5.5, 4.5]).sigmoid()
    torch.testing.assert_close(scores, expected)


def test_maps_suppress_each_other_only_if_asked() -> None:
    # Sheet, section 9: suppression across levels
    anchors = ONE * 2
    logits, deltas = [torch.tensor([[2.0]]), torch.tensor([[1.0]])], [torch.zeros(1, 1, 4)] * 2
    rules = ProposalRules(before=0, keep=9, min_size=0, per_level=True)
    ((boxes, scores),) = propose(logits, deltas, anchors, [(100, 100)], [1], rules)
    assert boxes.tolist() == [[10, 20, 30, 60]] * 2
    assert scores.tolist() == pytest.approx([0.880797, 0.268941 + 0.462117], abs=1e-6)
    rules = replace(rules, per_level=False)
    ((boxes, _),) = propose(logits, deltas, anchors, [(100, 100)], [1], rules)
    assert len(boxes) == 1


def test_moved_by_value() -> None:
    # A box of 20 x 40 about (20, 40): moved by half its width and a quarter of its height, then
    # twice as wide: 40 x 40 about (30, 50).
    logits, deltas = single(0, 0.5, 0.25, 0.6931472, 0)
    ((boxes, scores),) = propose(logits, deltas, ONE, [(100, 100)], [1], ALL)
    assert boxes[0].tolist() == pytest.approx([10, 30, 50, 70], abs=1e-4)
    assert scores.tolist() == [0.5]


def test_targets_and_proposals_are_inverse() -> None:
    # Sheet, section 13: targets normalised and deltas not
    truth = torch.tensor([[3.0, 5, 80, 70]])
    deltas = [box_ops.encode(one, truth.expand_as(one))[None] for one in ANCHORS]
    logits = [torch.zeros(1, len(one)) for one in ANCHORS]
    ((boxes, _),) = propose(logits, deltas, ANCHORS, [(96, 128)], [1], ALL)
    assert len(boxes) == sum(len(one) for one in ANCHORS)
    torch.testing.assert_close(boxes, truth.expand_as(boxes), atol=1e-3, rtol=0)


def test_anchors_over_the_border_take_part() -> None:
    # Sheet, section 13: they are dropped in training's targets only.
    anchors = [torch.tensor([[-20.0, -30, 10, 10]])]
    ((boxes, _),) = propose(*single(0, 0, 0, 0, 0), anchors, [(100, 100)], [1], ALL)
    assert boxes.tolist() == [[0, 0, 10, 10]]
    # One wholly outside may be moved in.
    anchors = [torch.tensor([[-20.0, 0, -10, 10]])]
    ((boxes, _),) = propose(*single(0, 3, 0, 0, 0), anchors, [(100, 100)], [1], ALL)
    assert boxes.tolist() == [[10, 0, 20, 10]]


def test_boxes_are_cut_at_the_image_not_at_its_padding() -> None:
    ((boxes, _),) = propose(*single(0, 0, 0, 2, 2), ONE, [(50, 25)], [1], ALL)
    assert boxes.tolist() == [[0, 0, 25, 50]]


def test_the_smallest_side_across_and_down_and_of_the_resized_image() -> None:
    given = (*single(0, 0, 0, 0, 0), ONE, [(100, 100)])  # 20 across, 40 down
    rules = replace(ALL, min_size=10)
    for factors, count in (((2.0, 4.0), 1), ((2.1, 4.0), 0), ((2.0, 4.1), 0)):
        ((boxes, _),) = propose(*given, [factors], rules)
        assert len(boxes) == count
    for size, count in ((20, 1), (20.1, 0)):
        ((boxes, _),) = propose(*given, [(7.0, 9.0)], replace(ALL, min_size=size, resized=True))
        assert len(boxes) == count


def test_the_smallest_side_is_in_pixels_of_the_original() -> None:
    # Sheet, section 13: 20 x 40 is 10 x 20 on an original of half the size.
    rules = replace(ALL, min_size=10)
    for scale, left in ((1, 1), (2, 1), (2.1, 0)):
        ((boxes, _),) = propose(*single(0, 0, 0, 0, 0), ONE, [(100, 100)], [scale], rules)
        assert len(boxes) == left
    images = propose(
        [torch.zeros(2, 1)],
        [torch.zeros(2, 1, 4)],
        ONE,
        [(100, 100)] * 2,
        torch.tensor([1, 3]),
        rules,
    )
    assert [len(boxes) for boxes, _ in images] == [1, 0]


def test_small_boxes_take_no_place_unless_asked() -> None:
    anchors = [torch.tensor([[0.0, 0, 4, 40], [50, 50, 90, 90]])]
    logits, deltas = [torch.tensor([[2.0, 1]])], [torch.zeros(1, 2, 4)]
    rules = ProposalRules(before=1, keep=9, min_size=8, per_level=True)
    ((boxes, _),) = propose(logits, deltas, anchors, [(100, 100)], [1], rules)
    assert boxes.tolist() == [[50, 50, 90, 90]]
    rules = replace(rules, drop_first=False)
    ((boxes, _),) = propose(logits, deltas, anchors, [(100, 100)], [1], rules)
    assert len(boxes) == 0


@pytest.mark.parametrize("rules", [*VARIANTS, PYRAMID_RULES, ALL], ids=str)
def test_none_may_be_left(rules: ProposalRules) -> None:
    logits, deltas = answers(0)
    for one in deltas:
        one[0, :, 0] = 100  # the first image's boxes all lie outside
    (none, some) = propose(logits, deltas, ANCHORS, SIZES, [1, 1], rules)
    assert none[0].shape == (0, 4)
    assert none[1].shape == (0,)
    assert len(some[0]) > 0


@pytest.mark.parametrize("rules", [*VARIANTS, ALL], ids=str)
def test_a_map_may_have_no_anchors(rules: ProposalRules) -> None:
    logits, deltas = answers(0)
    empty = [torch.zeros(2, 0), *logits], [torch.zeros(2, 0, 4), *deltas]
    with_none = propose(*empty, [torch.zeros(0, 4), *ANCHORS], SIZES, [1, 1], rules)
    without = propose(logits, deltas, ANCHORS, SIZES, [1, 1], rules)
    for ours, theirs in zip(with_none, without, strict=True):
        assert torch.equal(ours[0], theirs[0])
    no_logits, no_deltas, no_anchors = torch.zeros(1, 0), torch.zeros(1, 0, 4), torch.zeros(0, 4)
    ((boxes, scores),) = propose([no_logits], [no_deltas], [no_anchors], [(10, 10)], [1], rules)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_deltas_of_any_size_give_finite_boxes() -> None:
    # Sheet, section 13: exp without a bound
    for deltas in ((0, 0, 1e4, 1e4), (0, 0, 4.2, 4.2), (1e30, 0, 0, 0), (-1e38, 1e38, 90, 90)):
        found = propose(*single(0, *deltas), ONE, [(10**6, 10**6)], [1], ALL)
        assert found[0][0].isfinite().all()
    ((boxes, _),) = propose(*single(0, 100, 50, 9, 9), ONE, [(10**6, 10**6)], [1], ALL)
    sides = boxes[0, 2:] - boxes[0, :2]
    torch.testing.assert_close(sides, torch.tensor([20.0, 40]) * 1000 / 16)
    nan = float("nan")
    ((boxes, _),) = propose(*single(0, 0, nan, 0, 0), ONE, [(100, 100)], [1], ALL)
    assert boxes.shape == (0, 4)


def test_no_gradient_flows_through_proposals() -> None:
    logits, deltas = answers(0)
    for one in (*logits, *deltas):
        one.requires_grad_()
    for boxes, scores in propose(logits, deltas, ANCHORS, SIZES, [1, 1], VARIANTS[0]):
        assert not boxes.requires_grad
        assert not scores.requires_grad


def test_half_precision_gives_float32() -> None:
    logits, deltas = answers(0)
    logits, deltas = ([one.bfloat16() for one in ones] for ones in (logits, deltas))
    ours = propose(logits, deltas, ANCHORS, SIZES, [1, 1], ALL)
    logits, deltas = ([one.float() for one in ones] for ones in (logits, deltas))
    theirs = propose(logits, deltas, ANCHORS, SIZES, [1, 1], ALL)
    for one, other in zip(ours, theirs, strict=True):
        assert one[0].dtype == one[1].dtype == torch.float32
        assert torch.equal(one[0], other[0])


def test_nonsense_is_refused() -> None:
    for wrong in ({"before": -1}, {"keep": 0}, {"min_size": -1}, {"min_size": float("nan")}):
        with pytest.raises(SettingError, match="proposals: the best"):
            replace(ALL, **wrong)
    with pytest.raises(SettingError, match=r"an overlap of 1\.1 is not in 0 to 1"):
        replace(ALL, overlap=1.1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rules", [*VARIANTS, PYRAMID_RULES, ALL], ids=str)
def test_cuda_gives_the_same(rules: ProposalRules) -> None:
    logits, deltas = answers(0)
    ours = propose(logits, deltas, ANCHORS, SIZES, [1, 2], rules)
    logits, deltas, anchors = ([one.cuda() for one in ones] for ones in (logits, deltas, ANCHORS))
    theirs = propose(logits, deltas, anchors, SIZES, [1, 2], rules)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one[0], other[0].cpu(), atol=1e-3, rtol=1e-5)
