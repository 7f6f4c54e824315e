"""How a network with a pyramid looks at the regions of an image: on which maps, at which cells.

He et al. 2014, section 4.1 and appendix A. Vocabulary: R regions, S scales.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rcnnpipe.errors import SettingError

# Shorter sides of the images whose maps are pooled, for windows of 224: section 4.1. The authors'
# script has 874 instead of 864. For one scale they take 688.
SCALES = (480, 576, 688, 864, 1200)
WINDOW = 224  # the square whose area scaled regions should come closest to: section 4.1

SCALE_CHOICES = ("nearest-area", "nearest-scale")
PROJECTIONS = ("paper", "authors")


@dataclass(frozen=True)
class MapView:
    """What belongs to the weights beside the pyramid, and travels in the model file with it.

    Attributes:
        scales: the shorter side of the image on each map, in pixels.
        reference: the side of a square; each region is taken from the map on which it is nearest to
            that size. 224 in the paper, for windows of 224; the authors' code takes 208.
        choice: what "nearest" means: "nearest-area" in the paper, "nearest-scale" in the code.
        projection: from pixels to cells: "paper" or "authors".
    """

    scales: tuple[int, ...] = SCALES
    reference: float = WINDOW
    choice: str = "nearest-area"
    projection: str = "paper"

    def __post_init__(self) -> None:
        """There are scales, and the rules are known."""
        if not self.scales or min(self.scales) < 1 or self.reference <= 0:
            raise SettingError(
                f"scales {self.scales} and a reference of {self.reference:g} pixels: give at least "
                "one scale, all above 0"
            )
        for rule, rules in ((self.choice, SCALE_CHOICES), (self.projection, PROJECTIONS)):
            if rule not in rules:
                raise SettingError(f"'{rule}' is none of {', '.join(rules)}")

    def settings(self) -> dict[str, Any]:
        """JSON for the model file."""
        return asdict(self) | {"scales": list(self.scales)}


def build_view(settings: Mapping[str, Any]) -> MapView:
    """The inverse of :meth:`MapView.settings`."""
    return MapView(**{**settings, "scales": tuple(settings["scales"])})


def usual_view(window: int) -> MapView:
    """The paper's view for a network whose windows are so many pixels wide, not 224."""
    scales = tuple(round(scale * window / WINDOW) for scale in SCALES)
    return MapView(scales, window)
