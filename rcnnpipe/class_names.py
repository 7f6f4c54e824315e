"""Names of classes as one word of a command line: a file, a list, or a known set."""

from pathlib import Path

from rcnnpipe.errors import DataError, SettingError

COCO = "coco"


def class_names(text: str) -> tuple[str, ...]:
    """Names in the order of labels 1..K, without the background.

    Args:
        text: "coco" for the 90 outputs of torchvision's detectors, of which ten were never given
            to a class and are called "unused-12" and the like; a file with a name in each line; or
            names separated by commas.

    Raises:
        DataError: the file cannot be read as text.
        SettingError: a name is empty, there twice, or the background's.
    """
    if text == COCO:
        return _coco_names()
    path = Path(text)
    if path.suffix == ".txt" or path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataError(f"{path} is no text file with a class in each line") from None
        while lines and not lines[-1].strip():
            lines.pop()
        where, names = str(path), [line.strip() for line in lines]
    else:
        where, names = f"'{text}'", [word.strip() for word in text.split(",")]
    _require_distinct(where, names)
    return tuple(names)


def _require_distinct(where: str, names: list[str]) -> None:
    if not names or not all(names):
        raise SettingError(f"{where} has an empty name among the classes; name each of them")
    if "background" in names or "__background__" in names:
        raise SettingError(f"{where} names the background, which is always there; leave it out")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise SettingError(f"{where} names the class {twice[0]} twice; labels need distinct names")


def _coco_names() -> tuple[str, ...]:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(
        f"unused-{label}" if name == "N/A" else name
        for label, name in enumerate(names)
        if label > 0
    )
