"""One kind of bad input each: what is set up, what is run, and what the one sentence must say."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from click.testing import Result

from tests.robustness.pipeline import Made, change_coco, commands, out_of, run, tree

_BEFORE = b"the complete file of before"
# What stages write that write no artifact.
OUT = {"show": "out.png", "export": "out.json"}


def before_in(name: str) -> bytes:
    """What stands in an output's place before a run; an export replaces no artifact."""
    return b"\x89HDF\r\n\x1a\n" * name.endswith(".h5") + _BEFORE


@dataclass(frozen=True)
class Spot:
    """Where a case may do as it likes.

    Attributes:
        made: the pipeline's files, to read only.
        folder: of this case, for its own input.
    """

    made: Made
    folder: Path

    def file(self, name: str, content: str | bytes) -> Path:
        """A file of the case."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def data(
        self, split: str = "", change: Callable[[dict[str, Any]], object | None] | None = None
    ) -> Path:
        """A copy of the data set, with a split's document changed."""
        root = self.folder / "data"
        shutil.copytree(self.made.data, root)
        if change is not None:
            change_coco(root, split, change)
        return root

    def stage(self, name: str, *replaced: object) -> list[object]:
        """A stage's usual command line, its inputs replaced: old, new, old, new, ..."""
        words = list(commands(self.made)[name][1])
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            assert old in words, (old, words)
            words = [new if word == old else word for word in words]
        return words


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        name: of the test.
        words: sets it up and returns the command line, without --out.
        says: what the sentence must contain; {folder} stands for the case's folder.
        code: of the exit.
        out: name of the output; None for commands that have none or name it themselves.
        keeps_work: whether unfinished work may stay beside the output.
    """

    name: str
    words: Callable[[Spot], Sequence[object]]
    says: tuple[str, ...]
    code: int = 1
    out: str | None = "out.h5"
    keeps_work: bool = False

    def __str__(self) -> str:
        return self.name

    def check(self, made: Made, tmp_path: Path) -> Result:
        """Run the command: one sentence, and nothing is harmed."""
        spot = Spot(made, tmp_path / "in")
        spot.folder.mkdir()
        words = list(self.words(spot))
        place = tmp_path / "out"
        place.mkdir()
        if self.out is not None:
            (place / self.out).write_bytes(before_in(self.out))
            words += [out_of(str(words[0])), place / self.out]
        before = tree(spot.folder)
        result = run(*words)
        said = sentence(result, self.code)
        for part in self.says:
            assert part.format(folder=spot.folder) in said, said
        assert tree(spot.folder) == before
        if self.out is not None:
            assert (place / self.out).read_bytes() == before_in(self.out)
        if not self.keeps_work:
            assert {path.name for path in place.iterdir()} == {self.out} - {None}
        return result


def sentence(result: Result, code: int = 1) -> str:
    """The one sentence of a run that was refused."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    before, mark, said = result.stderr.partition("Error: ")
    assert mark, result.stderr
    # Above it, notes of a stage at work; or how it is used, where that was wrong.
    assert before.startswith("Usage: ") == (code == 2), result.stderr
    assert said.endswith("\n")
    assert "\n" not in said.strip(), result.stderr
    assert "Error" not in said, said
    for debris in ("Errno", "<class", "object at 0x", "np.", "tensor("):
        assert debris not in said, said
    return said.strip()


class Cases(list[Case]):
    """Bad input of one area, collected by decorating what sets it up."""

    def __call__(
        self, name: str, *says: str, **more: Any
    ) -> Callable[[Callable[[Spot], Sequence[object]]], None]:
        def add(words: Callable[[Spot], Sequence[object]]) -> None:
            self.append(Case(name, words, says, **more))

        return add


def changed(source: Path, change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    """Makes a copy of an artifact with something in it changed."""

    def make(path: Path) -> None:
        shutil.copy(source, path)
        with h5py.File(path, "r+") as file:
            change(file)

    return make
