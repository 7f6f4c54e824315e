"""PASCAL VOC from its home, through torchvision's download with its checksums."""

from pathlib import Path

from torchvision.datasets import VOCDetection

from rcnnpipe.errors import DataError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_PARTS = {"2007": ("trainval", "test"), "2012": ("trainval",)}
_SPLITS = {"2007": ("train", "val", "trainval", "test"), "2012": ("train", "val", "trainval")}


def fetch_voc(out: Path, year: str) -> Path:
    """Fetch and unpack a year's set into ``out``; returns the recipe ``out/vocYEAR.yaml``.

    Archives that are there with the right checksum are not fetched again, and a set whose recipe
    is written is complete and left as it is.

    Raises:
        DataError: the home cannot be reached, or what came has another checksum.
    """
    recipe = out / f"voc{year}.yaml"
    if recipe.is_file():
        return recipe
    out.mkdir(parents=True, exist_ok=True)
    for part in _PARTS[year]:
        try:
            VOCDetection(out, year=year, image_set=part, download=True)
        except (OSError, RuntimeError) as error:  # torchvision: RuntimeError for a wrong checksum
            raise DataError(
                f"VOC{year} {part} cannot be fetched into {out} ({error}); run the same command "
                f"again, or put the archive from its home there by hand"
            ) from error
    splits = "".join(f"  {name}: ImageSets/Main/{name}.txt\n" for name in _SPLITS[year])
    text = (
        f"name: voc{year}\nformat: voc\nroot: VOCdevkit/VOC{year}\n"
        f"classes: [{', '.join(CLASSES)}]\nsplits:\n{splits}"
        "licence: see host.robots.ox.ac.uk/pascal/VOC; the images are Flickr's\n"
    )
    partial = recipe.with_name(recipe.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(recipe)
    return recipe
