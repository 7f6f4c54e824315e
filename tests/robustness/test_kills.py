"""Every stage killed at random moments and run again: the same bytes, nothing left, nothing lost.

RCNNPIPE_KILLS says how many kills of each stage must hit it at work (default 2); with
RCNNPIPE_KILLS_TABLE=FILE a row for each stage is appended to a Markdown table.
"""

import os
import random
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.robustness.launcher import Launcher, after
from tests.robustness.pipeline import Made, commands, out_of, tree
from tests.robustness.refusal import before_in

KILLS = int(os.environ.get("RCNNPIPE_KILLS", "2"))
MOST_IN_A_ROW = 4
STAGES = list(commands(Made(Path())))
# prepare writes into no folder that holds something, check joins its list to the one of before.
REPLACING = [stage for stage in STAGES if stage not in ("prepare", "check")]


@dataclass
class Tally:
    """What became of the runs of one stage."""

    hits: int = 0
    leftovers: int = 0
    ended: int = 0
    resumed: int = 0
    seconds: float = 0.0
    moments: list[float] = field(default_factory=list)


class Changes:
    """Counts the changes of a folder's files; called now and then as ``stop`` of a launcher.

    Attributes:
        count: changes seen so far.
    """

    def __init__(self, folder: Path, until: int | None = None, delay: float = 0.0) -> None:
        """With ``until``, says to stop ``delay`` seconds after so many changes."""
        self.count, self._folder, self._seen = 0, folder, self._look(folder)
        self._until, self._delay, self._reached = until, delay, 0.0

    def __call__(self, elapsed: float) -> bool:
        now = self._look(self._folder)
        self.count += now != self._seen
        self._seen = now
        if self._until is None or self.count < self._until:
            return False
        self._reached = self._reached or elapsed
        return elapsed >= self._reached + self._delay

    @staticmethod
    def _look(folder: Path) -> set[tuple[str, int, int]]:
        found = set()
        for where, folders, files in os.walk(folder):
            for name in folders + files:
                with suppress(OSError):  # gone since it was listed
                    status = os.stat(os.path.join(where, name))
                    found.add((f"{where}/{name}", status.st_size, status.st_mtime_ns))
        return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_anywhere(stage: str, made: Made, launcher: Launcher, tmp_path: Path) -> None:
    name, words = commands(made)[stage]
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    command, out = [*words, out_of(stage)], killed / name
    whole.mkdir()
    changes = Changes(whole)
    code, seconds = launcher.run([*command, whole / name], log, changes)
    assert code == 0, log.read_text()
    expected, chance, tally = tree(whole), random.Random(f"kill {stage}"), Tally(seconds=seconds)
    while tally.hits < KILLS:
        assert tally.ended < 20 + 5 * KILLS, f"{tally}: too few kills hit"
        keeps = stage in REPLACING and tally.ended % 2 == 1
        _prepare(killed, expected if keeps else {})
        for _ in range(MOST_IN_A_ROW):
            # Half of the moments anywhere, half close to something that happens on the disk.
            moment = chance.uniform(0, seconds)
            near = Changes(
                killed, chance.randint(1, max(1, changes.count)), chance.uniform(0, 0.02)
            )
            stop = near if chance.random() < 0.5 else after(moment)
            code, took = launcher.run([*command, out], log, stop)
            assert code in (0, -9), log.read_text()
            _check_files(killed, expected, keeps)
            if code == 0:
                seconds = min(seconds, took)  # files are in memory now
                break
            tally.hits += 1
            tally.moments.append(took)
            tally.leftovers += len(tree(killed)) > len(expected) * keeps
        log.write_bytes(b"")
        code, _ = launcher.run([*command, out], log)
        assert code == 0, log.read_text()
        tally.resumed += "going on" in log.read_text()
        tally.ended += 1
        assert tree(killed) == expected
        assert sorted(path.name for path in killed.iterdir()) == [name]
    _record(stage, tally)


def _prepare(folder: Path, files: dict[str, bytes]) -> None:
    """An empty folder, or one with other complete files in the places of the output."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(before_in(name))


def _check_files(folder: Path, expected: dict[str, bytes], keeps: bool) -> None:
    """Whatever stands in the place of an output is whole: the one of before, or the new one."""
    found = tree(folder)
    for name, content in expected.items():
        if keeps:
            assert found[name] in (before_in(name), content), name
        else:
            assert found.get(name, content) == content, name


def _record(stage: str, tally: Tally) -> None:
    path = os.environ.get("RCNNPIPE_KILLS_TABLE")
    if not path:
        return
    moments = f"{min(tally.moments):.2f} to {max(tally.moments):.2f}"
    anew = tally.ended - tally.resumed
    with open(path, "a", encoding="utf-8") as file:
        file.write(
            f"| {stage} | {tally.seconds:.2f} | {tally.hits} | {moments} | {tally.leftovers} | "
            f"{tally.ended} | {tally.resumed} | {anew} | yes |\n"
        )
