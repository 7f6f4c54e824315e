"""What tests of stages share: the command line, chains of files, runs that are stopped, ranks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rcnnpipe.artifacts.model import read_model
from rcnnpipe.artifacts.store import Header, open_artifact
from rcnnpipe.cli import main
from rcnnpipe.models.detector import Detector
from rcnnpipe.models.weights import read_model_of_regions
from rcnnpipe.training.loop import Trainer

ON_CPU = ("--device", "cpu", "--workers", 1)


def run(*words: object, fails: bool = False) -> Result:
    """The command line, in this process."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert (result.exit_code != 0) == fails, result.output
    return result


def sentence(result: Result) -> str:
    """The one line of an error."""
    assert isinstance(result.exception, SystemExit), result.exception
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: "), result.stderr
    return last


class Files:
    """The files of a chain that ran, by name; and what detects in its data set."""

    def __init__(self, folder: Path) -> None:
        """``folder`` holds a data set in ``data``, and the files."""
        self.folder = folder
        self.data = (folder / "data", "--split", "train")
        self.seen = (*self.data, "--proposals", folder / "proposals.h5")

    def __getattr__(self, name: str) -> Path:
        """``files.model`` is ``model.h5``."""
        return self.folder / f"{name}.h5"

    def detect(self, out: Path, *more: object, **how: bool) -> Result:
        """Detect in the data set."""
        return run("detect", *self.data, *more, *ON_CPU, "--out", out, **how)


def tensors_of(path: Path) -> dict[str, Any]:
    return dict(read_model(path).tensors)


def detector_in(path: Path) -> Detector:
    _, detector = read_model_of_regions(path)
    assert isinstance(detector, Detector)
    return detector


def open_header(path: Path) -> Header:
    with open_artifact(path) as (header, _):
        return header


@contextmanager
def stopped_after(iterations: int) -> Iterator[None]:
    """Whatever trains meanwhile is stopped, as by its user, when it has done so many iterations."""
    original = Trainer.step

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.iteration == iterations:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        yield


def run_by_two_ranks(*words: object) -> None:
    """The command line, in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "rcnnpipe", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("wrote ") == 1  # only the first rank speaks
