"""Batches of warped windows, their loss, and which parameters learn how fast."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcnnpipe.datasets import Record
from rcnnpipe.errors import DataError, SettingError
from rcnnpipe.images import read_image
from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.models.warp import Crop, warp
from rcnnpipe.systems.rcnn import SOLVER, Sampling
from rcnnpipe.training.distributed import Ranks
from rcnnpipe.training.finetuning import (
    PixelCache,
    WindowLoss,
    WindowSource,
    new_trainer,
    parameter_groups,
    prepare_network,
)
from rcnnpipe.training.windows import draw_batch, gather_windows, label_windows
from tests.training.made import SIZE, draw_records, propose_near

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SAMPLING = Sampling(batch_size=16, foreground=4)


def network_of(name: str = "demo", outputs: int = 3) -> Network:
    return create_network(name, outputs, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    return draw_records(tmp_path_factory.mktemp("images"), 6)


def source_of(records: tuple[Record, ...], **settings: Any) -> WindowSource:
    proposals = [propose_near(record) for record in records]
    windows = gather_windows(label_windows(records, proposals, 2, SAMPLING, {}), SAMPLING)
    network = settings.pop("network", None) or network_of()
    ranks = settings.pop("ranks", ALONE)
    return WindowSource(windows, records, network, SAMPLING, ranks, **settings)


def test_a_batch_is_the_drawn_windows_of_their_images(records: tuple[Record, ...]) -> None:
    source = source_of(records, seed=5)
    network, windows = source.network, source.windows
    for iteration, batch in enumerate(source.batches(0, 3)):
        ((images, labels),) = batch.pieces
        draw = draw_batch(windows, SAMPLING, 5, iteration)
        order = np.argsort(windows.images[draw.rows], kind="stable")
        assert labels.tolist() == windows.labels[draw.rows][order].tolist()
        for number, place in enumerate(order):
            row = draw.rows[place]
            record = records[windows.images[row]]
            pixels = torch.from_numpy(read_image(record.path)).permute(2, 0, 1)
            box, flip = torch.from_numpy(windows.boxes[[row]]), torch.tensor([draw.flip[place]])
            expected = warp(pixels, box, network.crop, network.preprocessing, flip)
            assert torch.equal(images[number], expected[0])
        drawn = {records[image].image_id for image in windows.images[draw.rows]}
        assert list(batch.image_ids) == sorted(drawn)


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": 3}, {"cache_bytes": 0}])
def test_threads_and_cache_change_nothing(
    records: tuple[Record, ...], settings: dict[str, Any]
) -> None:
    def flat(source: WindowSource, start: int) -> list[torch.Tensor]:
        return [t for batch in source.batches(start, 6) for piece in batch.pieces for t in piece]

    expected = flat(source_of(records), 2)
    found = flat(source_of(records, **settings), 2)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 3)])
def test_shares_of_ranks_and_parts_add_up_to_the_batch(
    records: tuple[Record, ...], world: int, accumulate: int
) -> None:
    network = network_of().eval()  # no dropout: masks are each rank's own

    def sums(world: int, accumulate: int) -> tuple[float, torch.Tensor, torch.Tensor]:
        network.zero_grad()
        losses, shares = [], []
        loss = WindowLoss(network, SAMPLING.batch_size)
        for rank in range(world):
            ranks = Ranks(rank, world, CPU)
            source = source_of(records, network=network, ranks=ranks, accumulate=accumulate)
            for piece in next(source.batches(0, 1)).pieces:
                part = loss(piece)
                part.loss.backward()  # type: ignore[no-untyped-call]
                losses.append(part.loss.item())
                shares.append(torch.stack(list(part.shares.values())))
        gradient = network.get_parameter("conv1.weight").grad
        assert gradient is not None
        return sum(losses), gradient.clone(), torch.stack(shares).sum(0)

    whole, parts = sums(1, 1), sums(world, accumulate)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(parts[1], whole[1])
    assert torch.equal(parts[2], whole[2])
    assert whole[2][:, 1].tolist() == [4, 12]  # foreground and background windows


def test_the_loss_is_the_mean_of_the_softmax_losses() -> None:
    network = network_of().eval()
    images = torch.randn(5, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 0])
    part = WindowLoss(network, 5)((images, labels))
    logits = network.logits(images)
    expected = -logits.log_softmax(1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(part.loss, expected)
    right = logits.argmax(1) == labels
    assert part.shares["foreground-accuracy"].tolist() == [float(right[1:3].sum()), 2]
    assert part.shares["background-accuracy"].tolist() == [float(right[[0, 3, 4]].sum()), 3]


def test_rates_and_decays_are_the_authors() -> None:
    network = network_of("caffenet", 21)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_multiplier"], group["weight_decay"])
        for group in parameter_groups(network, SOLVER, "fc8")
        for parameter in group["params"]
    }
    layers = [f"conv{number}" for number in range(1, 6)] + ["fc6", "fc7"]
    expected = {f"{layer}.weight": (1, 5e-4) for layer in layers}
    expected |= {f"{layer}.bias": (2, 0) for layer in layers}
    assert found == expected | {"fc8.weight": (10, 5e-4), "fc8.bias": (20, 0)}


def test_lower_layers_can_keep_their_weights() -> None:
    network = network_of()
    prepare_network(network, 3, torch.Generator(), train_from="fc6")
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {f"fc{n}.{kind}" for n in (6, 7, 8) for kind in ("weight", "bias")}
    groups = parameter_groups(network, SOLVER)
    assert sum(len(group["params"]) for group in groups) == 6
    with pytest.raises(SettingError, match="no layer 'fc9' to train from; its layers are conv1"):
        prepare_network(network, 3, torch.Generator(), train_from="fc9")


def test_the_classifier_is_new_and_the_rest_as_it_was() -> None:
    network, before = network_of(outputs=7), network_of(outputs=7)
    prepare_network(network, 401, torch.Generator().manual_seed(3))
    assert network.outputs == 401
    weight = network.get_parameter("fc8.weight")
    assert tuple(weight.shape) == (401, 256)
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not network.get_parameter("fc8.bias").detach().any()
    for name, value in before.named_parameters():
        if not name.startswith("fc8"):
            assert torch.equal(value, network.get_parameter(name))


def test_crops_for_the_ablations() -> None:
    def crop_of(**settings: Any) -> Crop:
        network = network_of()
        prepare_network(network, 3, torch.Generator(), **settings)
        return network.crop

    assert crop_of() == Crop(56, 4)  # 16 of 227 is 4 of 56
    assert crop_of(padding=7) == Crop(56, 7)
    assert crop_of(crop="tight") == Crop(56, 0)
    assert crop_of(crop="square") == Crop(56, 4, "square")
    assert crop_of(crop="square-masked", padding=0) == Crop(56, 0, "square", context=False)
    with pytest.raises(SettingError, match="a tight crop has no padding, but 4 is set"):
        crop_of(crop="tight", padding=4)


def test_statistics_of_pre_training_are_kept() -> None:
    def statistics(keep: bool) -> list[str]:
        network = network_of("resnet18")
        prepare_network(network, 3, torch.Generator(), keep_statistics=keep)
        new_trainer(network, SOLVER, ALONE)
        return [name for name, value in network.named_parameters() if "bn1" in name]

    assert statistics(keep=True) == []
    assert "bn1.weight" in statistics(keep=False)


def test_the_cache_stays_within_its_limit(records: tuple[Record, ...]) -> None:
    image = SIZE[0] * SIZE[1] * 3
    cache = PixelCache(records, 2 * image)
    first = cache(0)
    assert cache(1) is not first
    assert cache(0) is first  # held, and now the one used last
    cache(2)
    assert cache(0) is first
    assert cache._bytes == 2 * image
    assert list(cache._held) == [2, 0]
    small = PixelCache(records, image - 1)
    assert small(0) is not small(0)
    np.testing.assert_array_equal(small(0), read_image(records[0].path))


def test_an_image_of_another_size_than_annotated_is_named(tmp_path: Path) -> None:
    (record,) = draw_records(tmp_path, 1)
    Image.new("RGB", (50, 40)).save(record.path)
    source = source_of((record,))
    with pytest.raises(DataError, match=r"image 000 is 50 x 40 pixels, but .* says 96 x 72"):
        list(next(source.batches(0, 1)).pieces)


def test_huge_images_are_not_decoded_far_ahead(records: tuple[Record, ...]) -> None:
    assert source_of(records)._depth() == 32  # two batches
    large = tuple(replace(record, size=(8000, 6000)) for record in records)
    # 144 MB each, of 256 MiB that may wait
    assert source_of(large)._depth() == 1
