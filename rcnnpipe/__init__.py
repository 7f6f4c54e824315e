"""Region-based object detection, from R-CNN onwards, as stages whose every product is a file."""

__version__ = "0.1.0"
