import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rcnnpipe.errors import SettingError
from rcnnpipe.models import svd_ranks
from rcnnpipe.models.architectures import NETWORKS
from rcnnpipe.models.backbones import Network, build_network, create_network
from rcnnpipe.models.compression import decompose, linear_modules, truncated_svd
from rcnnpipe.models.folding import fold_batch_norm
from rcnnpipe.models.pyramid import Pyramid
from rcnnpipe.models.pyramid_head import head_for
from rcnnpipe.training.finetuning import freeze_below

SIZES = [(12, 30), (30, 12), (20, 20)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(size, generator=generator(seed))


@pytest.mark.parametrize("size", SIZES)
def test_at_full_rank_the_two_layers_are_the_one(size: tuple[int, int]) -> None:
    weight, bias = weights(size).double(), weights((1, size[0]))[0].double()
    first, second = truncated_svd(weight, bias, min(size))
    assert first.bias is None
    assert (first.weight.shape, second.weight.shape) == (
        (min(size), size[1]),
        (size[0], min(size)),
    )
    assert torch.equal(second.bias, bias)
    rows = weights((7, size[1]), 1).double()
    found = second(first(rows))
    torch.testing.assert_close(found, rows @ weight.T + bias, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_the_error_is_the_tail_of_the_singular_values(size: tuple[int, int]) -> None:
    weight = weights(size).double()
    exact = torch.linalg.svdvals(weight)
    values = decompose(weight).values
    torch.testing.assert_close(values, exact)
    for rank in range(1, min(size) + 1):
        first, second = truncated_svd(weight, None, rank)
        left_out = (weight - second.weight @ first.weight).detach()
        tail = float(exact[rank:].square().sum().sqrt())
        assert float(torch.linalg.matrix_norm(left_out)) == pytest.approx(tail, abs=1e-12)
        # No other matrix of that rank comes nearer: the next singular value is what is left.
        following = float(exact[rank]) if rank < min(size) else 0.0
        largest = float(torch.linalg.matrix_norm(left_out, 2))
        assert largest == pytest.approx(following, abs=1e-12)
        whole = float(torch.linalg.matrix_norm(weight))
        error = svd_ranks.approximation_error(values, rank)
        assert error == pytest.approx(tail / whole, abs=1e-9)
        assert svd_ranks.kept_energy(values, rank) == pytest.approx(1 - (tail / whole) ** 2)


def test_a_matrix_of_low_rank_is_kept_whole() -> None:
    weight = weights((20, 3)) @ weights((3, 30), 1)
    first, second = truncated_svd(weight, None, 3)
    torch.testing.assert_close(second.weight @ first.weight, weight)
    assert svd_ranks.rank_for_energy(decompose(weight).values, 1 - 1e-9) == 3


@pytest.mark.parametrize("size", [(20, 30), (30, 20)])
@pytest.mark.parametrize("inner", [0, 3])
def test_ranks_that_a_matrix_has_not_add_nothing(inner: int, size: tuple[int, int]) -> None:
    weight = weights((size[0], inner)) @ weights((inner, size[1]), 1)
    factors = decompose(weight)
    assert torch.count_nonzero(factors.values) == inner
    assert all(torch.isfinite(part).all() for part in factors)
    first, second = truncated_svd(weight, None, 10, factors)
    torch.testing.assert_close(second.weight @ first.weight, weight)


@pytest.mark.parametrize("size", SIZES)
def test_factors_are_one_of_many_and_always_the_same(size: tuple[int, int]) -> None:
    left, values, right = decompose(weights(size))
    assert (values[:-1] >= values[1:]).all()
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()
    one = torch.eye(min(size)).double()
    torch.testing.assert_close(left.T @ left, one)
    torch.testing.assert_close(right @ right.T, one)
    for again, once in zip(decompose(weights(size).clone()), (left, values, right), strict=True):
        assert torch.equal(again, once)
    # The signs of U are set, so that of the weights is in V'.
    negative = decompose(-weights(size))
    torch.testing.assert_close(negative.left, left)
    torch.testing.assert_close(negative.right, -right)


def test_factors_at_hand_are_used_and_kinds_of_numbers_kept() -> None:
    weight = weights((12, 30))
    for once, again in zip(
        truncated_svd(weight, None, 4),
        truncated_svd(weight, None, 4, decompose(weight)),
        strict=True,
    ):
        assert torch.equal(once.weight, again.weight)
        assert once.weight.dtype == torch.float32
        assert once.weight.requires_grad
    assert truncated_svd(weight.half(), None, 4)[0].weight.dtype == torch.float16


@pytest.mark.parametrize("rank", [0, -1, 13])
def test_ranks_that_do_not_exist(rank: int) -> None:
    with pytest.raises(SettingError, match=f"12 x 30 have no rank {rank}"):
        truncated_svd(weights((12, 30)), None, rank)


# Fast R-CNN, section 3.1, and the sheet's table 9, VGG16: size, t, before and after in millions
TABLE = {
    "fc6": ((4096, 25088), 1024, 102.8, 29.9),
    "fc7": ((4096, 4096), 256, 16.8, 2.1),
}


@pytest.mark.parametrize("layer", TABLE)
def test_weights_of_the_paper(layer: str) -> None:
    size, rank, before, after = TABLE[layer]
    assert round(svd_ranks.weights_of(size) / 1e6, 1) == before
    assert round(svd_ranks.weights_of(size, rank) / 1e6, 1) == after
    with torch.device("meta"):
        vgg16 = NETWORKS["vgg16"].build(21)
    path = linear_modules(NETWORKS["vgg16"].layers, vgg16)[layer]
    linear = vgg16.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    assert (linear.out_features, linear.in_features) == size


def test_weights_are_those_of_the_layers() -> None:
    first, second = truncated_svd(weights((12, 30)), torch.zeros(12), 5)
    assert svd_ranks.weights_of((12, 30), 5) == first.weight.numel() + second.weight.numel()


@pytest.mark.parametrize("size", [(2, 3), (3, 256), (256, 864), (4096, 4096), (7, 7), (1, 9)])
def test_the_largest_rank_saves_and_the_next_does_not(size: tuple[int, int]) -> None:
    most = svd_ranks.largest_rank(size)
    assert svd_ranks.weights_of(size, most) < svd_ranks.weights_of(size)
    assert svd_ranks.weights_of(size, most + 1) >= svd_ranks.weights_of(size)
    assert most + 1 >= size[0] * size[1] / (size[0] + size[1]) > most
    if most:
        svd_ranks.require_saving("fc", size, most)
        with pytest.raises(SettingError, match=f"the largest rank that does is {most}"):
            svd_ranks.require_saving("fc", size, most + 1)
    else:
        with pytest.raises(SettingError, match="fc of 1 x 9 has too few weights"):
            svd_ranks.require_saving("fc", size, 1)


def test_rank_for_energy_is_the_smallest() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 1.0])  # squares 9, 4, 1, 1 of 15
    shares = {0.01: 1, 9 / 15: 1, 0.61: 2, 13 / 15: 2, 0.9: 3, 14 / 15: 3, 0.95: 4, 1.0: 4}
    for share, rank in shares.items():
        assert svd_ranks.rank_for_energy(values, share - 1e-9) == rank
    assert svd_ranks.rank_for_energy(torch.zeros(3), 0.5) == 1
    assert svd_ranks.kept_energy(torch.zeros(3), 1) == 1
    assert svd_ranks.approximation_error(torch.zeros(3), 1) == 0
    for share in (0.0, 1.1):
        with pytest.raises(SettingError, match="a share of the energy"):
            svd_ranks.rank_for_energy(values, share)


def clock(size: tuple[int, int], extra: float = 0.0) -> Callable[[int | None], float]:
    """Time as the number of weights has it, and so much of the layer's for every second layer."""
    whole = svd_ranks.weights_of(size)
    return lambda rank: svd_ranks.weights_of(size, rank) + (0 if rank is None else extra * whole)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.99])
def test_rank_for_time_is_the_largest_that_is_fast_enough(share: float) -> None:
    size = (256, 864)
    seconds = clock(size, 0.02)
    rank = svd_ranks.rank_for_time("fc6", size, share, seconds)
    step = svd_ranks.largest_rank(size) // 64 + 1
    assert seconds(rank) <= share * seconds(None) < seconds(rank + step)


def test_rank_for_time_takes_what_saves_at_most() -> None:
    rank = svd_ranks.rank_for_time("fc6", (256, 864), 0.9, lambda rank: 1 if rank is None else 0.1)
    assert rank == svd_ranks.largest_rank((256, 864))


def test_a_time_that_no_rank_keeps() -> None:
    with pytest.raises(SettingError, match=r"rank 3 of fc6 takes 0\.62 .* so no rank takes 0\.5"):
        svd_ranks.rank_for_time("fc6", (256, 864), 0.5, clock((256, 864), 0.6))


@pytest.mark.parametrize("rank", [None, 4])
def test_seconds_are_measured(rank: int | None) -> None:
    state = torch.get_rng_state()
    assert 0 < svd_ranks.seconds_for((16, 24), rank, torch.device("cpu"), rows=5) < 1
    assert torch.equal(torch.get_rng_state(), state)


def demo(outputs: int = 5) -> Network:
    return create_network("demo", outputs, generator())


def images(seed: int = 3) -> Tensor:
    return torch.randn(2, 3, 56, 56, generator=generator(seed))


def rebuilt(network: Network) -> Network:
    return build_network(json.loads(json.dumps(network.settings())), network.tensors())


def test_a_compressed_network_is_a_network() -> None:
    network = demo()
    layers, sizes = ("fc6", "fc7", "logits"), network.layer_sizes
    with torch.inference_mode():
        expected = network(images(), layers)
    network.compress("fc6", 190)
    network.compress("fc7", 120)
    assert network.compressed == {"fc6": 190, "fc7": 120}
    assert network.layer_sizes == sizes
    with torch.inference_mode():
        found = network(images(), layers)
    lost = {x: float((found[x] - expected[x]).norm() / expected[x].norm()) for x in expected}
    assert 0 < lost["fc6"] < 0.5
    assert lost["fc6"] < lost["fc7"] < 1
    again = rebuilt(network)
    assert again.compressed == network.compressed
    assert again.settings() == network.settings()
    assert torch.equal(again.logits(images()), network.logits(images()))
    assert not again.training
    copied = copy.deepcopy(network)
    copied.compress("fc8", 4)
    assert "fc8" not in network.compressed


def test_without_compression_nothing_is_recorded() -> None:
    assert "compressed" not in demo().settings()
    assert rebuilt(demo()).compressed == {}


def test_the_layer_computes_what_the_factors_say() -> None:
    network, plain = demo(), demo()
    network.compress("fc6", 10)
    linear = plain.get_submodule("fc6")
    assert isinstance(linear, nn.Linear)
    left, values, right = decompose(linear.weight)
    weight = (left[:, :10] * values[:10]) @ right[:10]
    layers = network(images(), ("pool5", "fc6"), flatten=True)
    expected = (layers["pool5"].double() @ weight.T + linear.bias.double()).relu()
    torch.testing.assert_close(layers["fc6"].double(), expected, atol=1e-5, rtol=1e-4)


def test_a_compressed_classifier() -> None:
    network = demo(outputs=20)
    network.compress("fc8", 15)
    assert network.classifier_module.weight.shape == (20, 15)
    assert torch.equal(rebuilt(network).logits(images()), network.logits(images()))
    network.replace_classifier(4, generator(7))
    plain = demo()
    plain.replace_classifier(4, generator(7))
    assert network.compressed == {}
    assert network.settings() == plain.settings()
    assert torch.equal(network.logits(images()), plain.logits(images()))


def test_a_new_classifier_on_compressed_layers() -> None:
    network = demo()
    network.compress("fc7", 30)
    network.replace_classifier(3, generator(1))
    assert network.compressed == {"fc7": 30}
    again = rebuilt(network)
    assert again.outputs == 3
    assert torch.equal(again.logits(images()), network.logits(images()))
    freeze_below(network, "fc7")
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert "fc6.weight" in frozen
    assert not any(name.startswith(("fc7.", "fc8.")) for name in frozen)


@pytest.mark.parametrize("layer", ["fc6", "fc7", "logits"])
def test_under_a_pyramid(layer: str) -> None:
    network = create_network("demo", 20, generator(), head=head_for("demo", Pyramid((1, 2))))
    path = linear_modules(network.architecture.layers, network)[layer]
    network.compress(path, 8)
    assert torch.equal(rebuilt(network).logits(images()), network.logits(images()))


def test_batch_norms_are_folded_as_ever() -> None:
    network = create_network("resnet18", 40, generator())
    network.freeze_batch_norm()
    network.compress("fc", 20)
    again, windows = rebuilt(network), torch.randn(1, 3, 64, 64, generator=generator(2))
    with torch.inference_mode():
        expected = network.logits(windows)
        assert torch.equal(again.logits(windows), expected)
        fold_batch_norm(again)
        torch.testing.assert_close(again.logits(windows), expected, atol=1e-4, rtol=1e-4)


# Layers that are fully connected, with the module that is.
LINEAR = {
    "alexnet": {"fc6": "classifier.1", "fc7": "classifier.4", "logits": "classifier.6"},
    "vgg16": {"fc6": "classifier.0", "fc7": "classifier.3", "logits": "classifier.6"},
    "zf5": {"fc6": "fc6", "fc7": "fc7", "logits": "fc8"},
    "resnet18": {"logits": "fc"},
    "squeezenet": {},
    "mobilenet_v3_large": {"fc6": "classifier.0", "logits": "classifier.3"},
}


@pytest.mark.parametrize("name", LINEAR)
def test_layers_are_found(name: str) -> None:
    with torch.device("meta"):
        body = NETWORKS[name].build(5)
    assert linear_modules(NETWORKS[name].layers, body) == LINEAR[name]


def test_compressed_layers_are_found() -> None:
    network = demo()
    network.compress("fc6", 10)
    layers = linear_modules(network.architecture.layers, network)
    assert layers == {"fc6": "fc6", "fc7": "fc7", "logits": "fc8"}


def test_what_cannot_be_compressed() -> None:
    network = demo()
    network.compress("fc7", 10)
    before = network.settings()
    for path, rank, message in (
        ("fc9", 3, "there is no module 'fc9'"),
        ("conv1", 3, "'conv1' is no linear module"),
        ("fc7", 3, "'fc7' is compressed already"),
        ("fc6", 198, "rank 198 saves no weights of 'fc6', which has 256 x 864; .* does is 197"),
        ("fc6", 0, "0 is no rank for 'fc6'; give a whole number from 1 to 197"),
    ):
        with pytest.raises(SettingError, match=message):
            network.compress(path, rank)
    assert network.settings() == before
    squeezenet = create_network("squeezenet", 5)
    with pytest.raises(SettingError, match=r"'classifier\.1' is no linear module"):
        squeezenet.compress("classifier.1", 2)


@pytest.mark.parametrize(
    ("compressed", "message"),
    [
        ({"fc6": 9}, "do not fit"),
        ({"fc6": 10, "fc7": 3}, "do not fit"),
        ({}, "do not fit"),
        ({"fc6": 10, "nowhere": 3}, "no module 'nowhere'"),
        ({"conv1": 3}, "no linear module"),
        ({"fc6": 10**9}, "saves no weights"),
        ({"fc6": -1}, "is no rank"),
        ({"fc6": "10"}, "is no rank"),
        ({"fc6": None}, "is no rank"),
        (["fc6"], "not given as a mapping"),
        (None, "not given as a mapping"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(compressed: object, message: str) -> None:
    network = demo()
    network.compress("fc6", 10)
    settings = network.settings() | {"compressed": compressed}
    with pytest.raises(SettingError, match=message) as told:
        build_network(settings, network.tensors())
    assert "\n" not in str(told.value)
