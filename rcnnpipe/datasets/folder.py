"""A folder of images, or one image, without annotations: something to detect in."""

from rcnnpipe.datasets.faults import Fault
from rcnnpipe.datasets.parsed import Parsed, ParsedImage
from rcnnpipe.datasets.paths import Outside, by_stem, check_link, files_below
from rcnnpipe.datasets.recipe import Recipe
from rcnnpipe.errors import DataError


def parse_folder(recipe: Recipe, split: str | None) -> Parsed:
    """Every image below the folder by name; its id is the name without suffix (``sub/a``)."""
    root = recipe.root
    if isinstance(recipe.images, str) and (root / recipe.images).is_file():
        names = [recipe.images]  # the user named this one image
    else:
        below = recipe.images.get(split or "") if isinstance(recipe.images, dict) else recipe.images
        root = root / (recipe.splits[split] if split else below or ".")
        names = files_below(root)
        if not names:
            raise DataError(f"there is no image in {root}")
    faults: list[Fault] = []
    images = []
    for stem, files in by_stem(names).items():
        path = root / files[0]
        if len(files) > 1:
            faults.append(Fault("duplicate-image", f"{' and '.join(files)} have one name", stem))
        try:
            if not recipe.follow_links and len(names) > 1 and path.is_symlink():
                check_link(root, path)
        except Outside as error:
            faults.append(Fault("outside-folder", str(error), stem))
        images.append(ParsedImage(stem, path))
    return Parsed(images, list(recipe.classes or ()), faults=faults)
