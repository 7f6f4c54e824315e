"""Networks that torchvision does not have: the parts of CaffeNet, ZF-5 and the demo's small one.

These modules only hold the parts, under the names of the papers' layers; the order in which an
image passes them stands in :mod:`rcnnpipe.models.architectures`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a square of one channel (Caffe's WITHIN_CHANNEL).

    y = x / (1 + alpha * mean of x^2 over size x size)^beta; the border's zeros count in the mean.
    """

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        """Hold the constants; nothing is learned."""
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, maps: Tensor) -> Tensor:
        """(R, C, H, W) -> the same shape."""
        mean = avg_pool2d(maps.square(), self.size, stride=1, padding=self.size // 2)
        return maps * torch.pow(1 + self.alpha * mean, -self.beta)


class CaffeNet(nn.Module):
    """R-CNN's network (authors' ``pascal_finetune_train.prototxt``): 227 -> 256 x 6 x 6 -> 4096."""

    def __init__(self, outputs: int) -> None:
        """Pooling precedes normalisation, and Caffe's pooling rounds sizes up."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, outputs)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.flatten = nn.Flatten()


class Zf5(nn.Module):
    """SPP-net's ZF-5 (authors' ``Zeiler_conv5.prototxt``): 224 -> 256 x 13 x 13, stride 16.

    ``grid`` is the 6 x 6 level alone, the paper's baseline without a pyramid, 9216 values.
    """

    def __init__(self, outputs: int) -> None:
        """No groups; normalisation precedes pooling."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, outputs)
        self.norm = WithinChannelNorm(3, alpha=5e-5, beta=0.75)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.grid = nn.AdaptiveMaxPool2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.flatten = nn.Flatten()


class Demo(nn.Module):
    """AlexNet in small for the drawn demo set: 56 -> 96 x 3 x 3 (864) -> 256 -> 256.

    Five convolutions, three overlapping 3/2 poolings and two fully connected layers, as the papers'
    networks have them; two processor cores pass several thousand windows a second.
    """

    def __init__(self, outputs: int) -> None:
        """56 / 2 = 28, pooled 14, 7 and 3."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 96, 3, padding=1)
        self.conv4 = nn.Conv2d(96, 96, 3, padding=1)
        self.conv5 = nn.Conv2d(96, 96, 3, padding=1)
        self.fc6 = nn.Linear(96 * 3 * 3, 256)
        self.fc7 = nn.Linear(256, 256)
        self.fc8 = nn.Linear(256, outputs)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.2)  # of so few features half cannot be spared
        self.flatten = nn.Flatten()
