"""Outputs that cannot be written, disks that are full, runs that are stopped, spoilt journals."""

import fcntl
import filecmp
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

from rcnnpipe.artifacts.rows import RowWriter
from tests.robustness.launcher import Launcher, after
from tests.robustness.pipeline import Made, commands, out_of, ran, run, tree
from tests.robustness.refusal import Case, Cases, Spot, before_in, sentence
from tests.stages.made import stopped_after

CASES = Cases()
STAGES = [stage for stage in commands(Made(Path())) if stage not in ("prepare", "check")]
ARTIFACTS = [stage for stage in STAGES if commands(Made(Path()))[stage][0].endswith(".h5")]
FILES = [stage for stage in STAGES if stage not in ("evaluate", "show")]
# These write the artifact inside of the folder.
IN_FOLDERS = ("propose", "propose-rpn", "extract-features", "pool")
TUNING = ("finetune", "finetune-pooled", "finetune-fast", "finetune-faster")
IN_BOTH = ("pretrain", "pretrain-pyramid", *TUNING, "detect", "detect-fast")


@pytest.mark.parametrize("stage", FILES)
def test_out_is_a_folder(made: Made, tmp_path: Path, stage: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    result = run(*commands(made)[stage][1], "--out", tmp_path / "mine")
    assert str(tmp_path / "mine") in sentence(result, result.exit_code)
    assert tree(tmp_path) == {"mine/notes.txt": b"mine"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", ["below a file", "below a device", "in no such system folder"])
def test_out_cannot_be_made(made: Made, tmp_path: Path, stage: str, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    folders = {"below a file": tmp_path / "file", "below a device": Path("/dev/null")}
    folder = folders.get(place, Path("/proc/nowhere"))
    name = commands(made)[stage][0]
    said = sentence(run(*commands(made)[stage][1], "--out", folder / "inner" / name))
    assert str(folder) in said
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("stage", ["evaluate", "show"])
def test_out_is_a_file(made: Made, tmp_path: Path, stage: str) -> None:
    (tmp_path / "mine").write_text("mine")
    said = sentence(run(*commands(made)[stage][1], "--out", tmp_path / "mine"))
    assert str(tmp_path / "mine") in said
    assert tree(tmp_path) == {"mine": b"mine"}


@pytest.mark.parametrize("stage", STAGES)
def test_out_is_a_pipe(made: Made, tmp_path: Path, stage: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = sentence(run(*commands(made)[stage][1], "--out", tmp_path / "pipe"))
    assert f"{tmp_path}/pipe is no ordinary file" in said
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("stage", [stage for stage in FILES if not stage.startswith("export")])
def test_no_right_to_write(
    made: Made, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    said = sentence(run(*commands(made)[stage][1], "--out", tmp_path / "out.h5"))
    assert f"cannot write {tmp_path}/out.h5" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ARTIFACTS)
def test_only_artifacts_are_replaced(made: Made, tmp_path: Path, stage: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8mine")
    said = sentence(run(*commands(made)[stage][1], "--out", tmp_path / "photo.jpg"))
    assert f"{tmp_path}/photo.jpg exists and is no artifact of rcnnpipe" in said
    assert tree(tmp_path) == {"photo.jpg": b"\xff\xd8mine"}


@pytest.mark.parametrize("stage", ARTIFACTS)
def test_two_do_not_write_one_file(
    made: Made, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*commands(made)[stage][1], "--out", tmp_path / "out.h5"]
    flock, locks = fcntl.flock, []

    def noted(file: TextIO, operation: int) -> None:
        locks.append(Path(file.name))
        flock(file, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", noted)
        ran(*words)
    before = tree(tmp_path)
    assert before.keys() == {"out.h5"}
    assert locks
    # What a stage locks while it works or writes, held by somebody else.
    for lock in dict.fromkeys(locks):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as held:
            flock(held, fcntl.LOCK_EX)
            said = sentence(run(*words))
        assert f"another process is writing {tmp_path}/out.h5" in said
        assert (tmp_path / "out.h5").read_bytes() == before["out.h5"]


def over(name: str, stage: str, artifact: str) -> None:
    """A case: the output is to replace an input."""

    def words(spot: Spot) -> Sequence[object]:
        path = spot.file("mine.h5", getattr(spot.made, artifact).read_bytes())
        words = spot.stage(stage, getattr(spot.made, artifact), path)
        return (*words, out_of(stage), path)

    CASES(name, "mine.h5 is also", "name another", out=None)(words)


over("a cache by its SVM", "train-svm", "features")
over("a cache by its regression", "train-bbox-reg", "features")
over("weights by the model", "finetune", "pretrained")
over("proposals by features", "extract-features", "proposals")
over("an SVM by detections", "detect", "svm")
over("detections by their export", "export", "detections")


@CASES(
    "a data set by its proposals", "set.yaml exists and is no artifact", "name another", out=None
)
def _(spot: Spot) -> Sequence[object]:
    recipe = spot.file("set.yaml", f"root: {spot.made.data}")
    return ("propose", recipe, "--split", "train", "--out", recipe)


@CASES("a data set by its scores", "is also", "name another", out=None)
def _(spot: Spot) -> Sequence[object]:
    data = spot.data()
    return (*spot.stage("evaluate", spot.made.data, data), "--out", data)


@CASES("a table by the model", "is also --curves", "name another")
def _(spot: Spot) -> Sequence[object]:
    return (*spot.stage("finetune"), "--curves", spot.folder.parent / "out" / "out.h5")


@CASES("curves below a file", "{folder}/notes.txt")
def _(spot: Spot) -> Sequence[object]:
    file = spot.file("notes.txt", "mine")
    return (*spot.stage("finetune"), "--curves", file / "curves.csv")


@CASES("curves in a folder's place", "curves.csv", code=2)
def _(spot: Spot) -> Sequence[object]:
    (spot.folder / "curves.csv").mkdir()
    return (*spot.stage("pretrain"), "--curves", spot.folder / "curves.csv")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, made: Made, tmp_path: Path) -> None:
    case.check(made, tmp_path)


@pytest.mark.parametrize("stage", FILES)
@pytest.mark.parametrize("ending", [".partial", ".partial.h5"])
@pytest.mark.parametrize("taken", ["file", "folder"])
def test_the_place_of_unfinished_work_is_taken(
    made: Made, tmp_path: Path, stage: str, ending: str, taken: str
) -> None:
    name, words = commands(made)[stage]
    partial = tmp_path / (name + ending)
    if taken == "folder":
        partial.mkdir()
        (partial / "notes.txt").write_text("mine")
    else:
        partial.write_text("mine")
    if taken == "file":  # which a folder cannot replace, and another file does
        refused = ending == ".partial" and stage in IN_FOLDERS + IN_BOTH
    else:
        unfinished = ".partial.h5" if name.endswith(".h5") else ".partial"
        refused = ending == unfinished and stage not in IN_FOLDERS
    result = run(*words, "--out", tmp_path / name)
    assert (result.exit_code != 0) == refused, result.output
    if refused:
        assert str(partial) in sentence(result)
        assert not (tmp_path / name).exists()
    if refused or taken == "folder":
        assert "mine" in [content.decode(errors="replace") for content in tree(tmp_path).values()]


@pytest.mark.parametrize("stage", [*commands(Made(Path()))])
def test_a_full_disk(made: Made, launcher: Launcher, tmp_path: Path, stage: str) -> None:
    """No file may grow beyond some bytes; later it may, and the run ends as it should."""
    name, words = commands(made)[stage]
    log, place, whole = tmp_path / "log", tmp_path / "out", tmp_path / "whole"
    place.mkdir()
    whole.mkdir()
    command = [*words, out_of(stage)]
    assert launcher.run([*command, whole / name], log)[0] == 0
    expected = tree(whole)
    keeps = stage not in ("prepare", "check")
    for file in expected if keeps else ():
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_bytes(before_in(file))
    for share in (0.0, 0.8):
        log.unlink()
        size = max(map(len, expected.values()))
        code, _ = launcher.run([*command, place / name], log, largest_file=round(share * size))
        said = log.read_text()
        assert code == 1, said
        assert "Traceback" not in said
        assert said.count("Error: ") == 1
        assert "File too large" in said.partition("Error: ")[2]
        assert len(said.partition("Error: ")[2].strip().splitlines()) == 1
        for file in expected if keeps else ():
            # Of several files, each is whole: new, or as it was before.
            assert (place / file).read_bytes() in (before_in(file), expected[file])
    assert launcher.run([*command, place / name], log)[0] == 0
    assert tree(place) == expected


@pytest.mark.parametrize(
    ("stage", "workers"),
    [("propose", 1), ("propose", 2), ("finetune", 2), ("extract-features", 2), ("train-svm", 2)],
)
def test_stopped_by_the_user(
    made: Made, launcher: Launcher, tmp_path: Path, stage: str, workers: int
) -> None:
    name, words = commands(made)[stage]
    words = [*words, "--workers", workers]
    log, out = tmp_path / "log", tmp_path / "out" / name
    command = [*words, "--out", out]
    code, took = launcher.run(command, log)
    while out.exists():  # it may end before it is stopped
        out.unlink()
        log.write_bytes(b"")
        took *= 0.8
        code, _ = launcher.run(command, log, after(took), signal.SIGINT)
    said = log.read_text()
    assert code == 1, said
    assert "Error: stopped; the same command goes on" in said
    assert "Traceback" not in said
    assert launcher.run(command, log)[0] == 0
    again = tmp_path / "again.h5"
    assert launcher.run([*words, "--out", again], log)[0] == 0
    assert filecmp.cmp(out, again, shallow=False)


@pytest.mark.parametrize("pattern", ["state.json", "tail-*.npz", "*.chunks"])
def test_a_spoilt_journal(
    made: Made, tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unfinished work that cannot be read is done again."""
    words = ["propose", made.data, "--split", "train", "--method", "windows", "--out"]
    append, kept = RowWriter.append, tmp_path / "kept"

    def stop_at_third(self: RowWriter, rows: Any) -> None:
        if self.done == 2:
            raise KeyboardInterrupt
        append(self, rows)

    monkeypatch.setattr(RowWriter, "append", stop_at_third)
    assert "stopped; " in sentence(run(*words, tmp_path / "p.h5"))
    monkeypatch.undo()
    (tmp_path / "p.h5.partial").rename(kept)
    ran(*words, tmp_path / "whole.h5")
    for content in (b"", b"{", b"[]", b'{"done": 2}', b'{"done": "x"}', b"\xff" * 60, None):
        shutil.copytree(kept, tmp_path / "p.h5.partial")
        spoilt = list(tmp_path.glob(f"p.h5.partial/*/{pattern}"))
        assert spoilt
        for path in spoilt:
            path.unlink() if content is None else path.write_bytes(content)
        ran(*words, tmp_path / "p.h5")
        assert (tmp_path / "p.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
        assert not (tmp_path / "p.h5.partial").exists()


def test_a_spoilt_checkpoint(made: Made, tmp_path: Path) -> None:
    words = [*commands(made)["finetune"][1], "--out"]
    kept = tmp_path / "kept"
    with stopped_after(7):
        assert "stopped; " in sentence(run(*words, tmp_path / "m.h5"))
    (tmp_path / "m.h5.partial").rename(kept)
    (held,) = (path.read_bytes() for path in kept.glob("*/*.npz"))
    for content in (b"", held[:5000], b"\xff" * 60):
        shutil.copytree(kept, tmp_path / "m.h5.partial")
        (path,) = tmp_path.glob("m.h5.partial/*/*.npz")
        path.write_bytes(content)
        ran(*words, tmp_path / "m.h5")
        assert (tmp_path / "m.h5").read_bytes() == made.model.read_bytes()
        assert not (tmp_path / "m.h5.partial").exists()
