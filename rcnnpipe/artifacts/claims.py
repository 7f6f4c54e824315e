"""What a file claims to hold against the bytes it has, compared before memory is taken."""

from pathlib import Path

import h5py

from rcnnpipe.artifacts.codec import filters_of
from rcnnpipe.errors import ArtifactError

_ZSTD = 32015  # the number of its HDF5 filter
# Deflate cannot shrink data further than this: a header that claims more rows than its bytes can
# hold is false, and is refused before memory is taken for it.
_LARGEST_RATIO = 1040
_LARGEST_RATIO_OF_OTHERS = 2**18  # zstd on zeros


def check_sizes(path: Path, file: h5py.File) -> None:
    """Make sure that no data set claims more than the bytes it stores can hold.

    Raises:
        ValueError: one does; names it.
        ArtifactError: the file is packed by a package that is not installed.
    """

    def check(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset):
            if _ZSTD in filters_of(node):
                _learn_zstd(path)
            stored = node.id.get_storage_size()
            deflated = node.compression in (None, "gzip") and set(filters_of(node)) <= {2, 1}
            ratio = _LARGEST_RATIO if deflated else _LARGEST_RATIO_OF_OTHERS
            if node.nbytes > ratio * stored + 4096:
                raise ValueError(f"{name} claims {node.nbytes} bytes but stores {stored}")

    file.visititems(check)


def _learn_zstd(path: Path) -> None:
    """Register the filter with HDF5, which an import does."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        raise ArtifactError(
            f"{path} is compressed with zstd; run pip install 'rcnnpipe[zstd]' to read it"
        ) from None
