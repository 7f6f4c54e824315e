import json

import pytest
import torch

from rcnnpipe.errors import SettingError
from rcnnpipe.models.preprocessing import PRESETS, Preprocessing, build_preprocessing, preset


@pytest.mark.parametrize("name", PRESETS)
def test_settings_round_trip_through_json(name: str) -> None:
    first = preset(name)
    again = build_preprocessing(json.loads(json.dumps(first.settings())))
    assert again.settings() == first.settings()
    assert torch.equal(again.mean, first.mean)
    assert torch.equal(again.std, first.std)


def test_mean_image_travels_as_a_tensor() -> None:
    mean = torch.rand(3, 8, 8)
    settings = json.loads(json.dumps(Preprocessing(mean, torch.ones(3)).settings()))
    assert settings["mean"] is None
    assert torch.equal(build_preprocessing(settings, mean).mean, mean)
    with pytest.raises(SettingError, match="needs its per-pixel mean image"):
        build_preprocessing(settings)


def test_values_of_the_presets() -> None:
    pixel = torch.tensor([255, 0, 128], dtype=torch.uint8).view(3, 1, 1)
    caffe = preset("caffe").apply(pixel).flatten()  # blue, green, red
    torch.testing.assert_close(
        caffe, torch.tensor([128 - 104.00698793, -116.66876762, 255 - 122.67891434])
    )
    torchvision = preset("torchvision").apply(pixel).flatten()
    torch.testing.assert_close(
        torchvision,
        torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]),
    )


def test_nonsense_is_refused() -> None:
    with pytest.raises(SettingError, match="neither RGB nor BGR"):
        Preprocessing(torch.zeros(3), torch.ones(3), order="GBR")
    with pytest.raises(SettingError, match=r"neither \(3,\) nor \(3, S, S\)"):
        Preprocessing(torch.zeros(3, 4, 5), torch.ones(3))
    with pytest.raises(SettingError, match="positive std"):
        Preprocessing(torch.zeros(3), torch.zeros(3))
    with pytest.raises(SettingError, match="there are torchvision, caffe"):
        preset("keras")
