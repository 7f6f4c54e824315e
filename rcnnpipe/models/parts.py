"""What a detector is put together from, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcnnpipe.errors import SettingError
from rcnnpipe.models.anchors import Anchors, build_anchors
from rcnnpipe.models.fpn import Neck, build_neck
from rcnnpipe.models.image_view import ImageView, build_image_view
from rcnnpipe.models.region_cut import Cut, build_cut
from rcnnpipe.models.region_pooling import RegionPooling, build_region_pooling
from rcnnpipe.models.rpn import ProposalRules


@dataclass(frozen=True)
class Parts:
    """What a detector is put together from.

    Attributes:
        view: how images become network input.
        pooling: how regions are pooled from the maps.
        cut: where the network is cut, whose own layers behind the cut are the head; None with a
            neck, which has a head of its own.
        neck: a feature pyramid on several maps, or None.
        hidden: outputs of the fully connected layers of a neck's head.
        convolutions: of a neck's head, before its one fully connected layer; 0 for two of those.
        anchors: of an RPN, or None where regions come from elsewhere.
        rpn_channels: of the RPN's 3 x 3 convolutions.
        rpn_depth: how many of those there are, one behind the other.
        separate_heads: whether the RPN has a head for each map, not one for all.
        rpn_strides: of the maps that the RPN looks at; None for those of ``pooling``, and of an
            extra map behind them.
        proposals: which of the RPN's boxes are regions once it is trained.
        smallest: a box that is moved and cut at the image is none where a side of it is shorter, in
            pixels of the resized image (torchvision); None keeps a pixel of each at the border, as
            the authors' code does.
    """

    view: ImageView
    pooling: RegionPooling
    cut: Cut | None = None
    neck: Neck | None = None
    hidden: int = 1024  # Lin et al. 2017, section 4.2
    anchors: Anchors | None = None
    rpn_channels: int = 256
    proposals: ProposalRules | None = None
    smallest: float | None = None
    convolutions: int = 0
    rpn_depth: int = 1
    rpn_strides: tuple[int, ...] | None = None
    separate_heads: bool = False

    def __post_init__(self) -> None:
        """There is one head, and an RPN is whole."""
        if (self.cut is None) == (self.neck is None):
            raise SettingError("a detector has either a cut network or a neck")
        if (self.anchors is None) != (self.proposals is None):
            raise SettingError("an RPN has both anchors and rules for its proposals")
        maps = 1 if self.neck is None or self.neck.finest_only else len(self.neck.layers)
        if len(self.pooling.strides) > maps:
            raise SettingError(
                f"regions cannot be pooled from {len(self.pooling.strides)} maps: there are {maps}"
            )
        looked_at = len(self.strides)
        if looked_at > maps + bool(self.neck and self.neck.extra):
            raise SettingError(f"an RPN cannot look at {looked_at} maps: there are {maps}")
        if self.anchors is not None and len(self.anchors.sizes) != looked_at:
            raise SettingError(f"anchors of {len(self.anchors.sizes)} maps for {looked_at}")
        if self.separate_heads not in (False, True) or (self.separate_heads and looked_at < 2):
            raise SettingError("separate heads of an RPN are for several maps")
        if self.hidden < 1 or self.rpn_channels < 1:
            raise SettingError(
                f"{self.hidden} hidden units and {self.rpn_channels} channels of an RPN: give 1 or "
                "more of each"
            )
        if self.convolutions < 0 or self.rpn_depth < 1 or (self.convolutions and self.cut):
            raise SettingError(
                f"{self.convolutions} convolutions of regions and {self.rpn_depth} of an RPN: give "
                "0 or more, which are for necks, and 1 or more"
            )

    @property
    def strides(self) -> list[tuple[int, int]]:
        """Of every map that the RPN looks at, down and across; an extra map is coarser by two."""
        if self.rpn_strides is not None:
            return [(stride, stride) for stride in self.rpn_strides]
        strides = list(self.pooling.strides)
        if self.neck and self.neck.extra and not self.neck.finest_only:
            strides.append(2 * strides[-1])
        return [(stride, stride) for stride in strides]

    def anchor_strides(self, map_sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Pixels from one anchor to the next on maps of (height, width), down and across."""
        if self.anchors is None or not self.anchors.spread:
            return self.strides
        (height, width), (down, across) = map_sizes[0], self.strides[0]
        return [(height * down // own[0], width * across // own[1]) for own in map_sizes]

    def smallest_sides(self, view: ImageView, size: tuple[int, int]) -> tuple[float, float] | None:
        """:attr:`smallest` across and down, in pixels of the original image of ``size``."""
        if self.smallest is None:
            return None
        x, y = view.factors(size, view.scale_of(size, view.scales[0]))
        return self.smallest / x, self.smallest / y

    def settings(self) -> dict[str, Any]:
        """JSON for the model file; what few detectors have only where it is there."""
        rare = {
            "convolutions": self.convolutions,
            "rpn_depth": self.rpn_depth if self.rpn_depth > 1 else 0,
            "rpn_strides": list(self.rpn_strides or ()),
            "separate_heads": self.separate_heads,
        }
        return {
            "view": self.view.settings(),
            "pooling": self.pooling.settings(),
            "cut": self.cut.settings() if self.cut else None,
            "neck": self.neck.settings() if self.neck else None,
            "hidden": self.hidden,
            "anchors": self.anchors.settings() if self.anchors else None,
            "rpn_channels": self.rpn_channels,
            "proposals": self.proposals.settings() if self.proposals else None,
            "smallest": self.smallest,
        } | {name: value for name, value in rare.items() if value}


def build_parts(settings: Mapping[str, Any]) -> Parts:
    """The inverse of :meth:`Parts.settings`."""
    cut, neck, anchors = (settings[name] for name in ("cut", "neck", "anchors"))
    proposals = settings["proposals"]
    return Parts(
        view=build_image_view(settings["view"]),
        pooling=build_region_pooling(settings["pooling"]),
        cut=build_cut(cut) if cut else None,
        neck=build_neck(neck) if neck else None,
        hidden=settings["hidden"],
        anchors=build_anchors(anchors) if anchors else None,
        rpn_channels=settings["rpn_channels"],
        proposals=ProposalRules(**proposals) if proposals else None,
        smallest=settings.get("smallest"),
        convolutions=settings.get("convolutions", 0),
        rpn_depth=settings.get("rpn_depth", 1),
        rpn_strides=tuple(settings["rpn_strides"]) if "rpn_strides" in settings else None,
        separate_heads=settings.get("separate_heads", False),
    )
