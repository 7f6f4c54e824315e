"""Runs of the command line in processes of their own, to be killed at any moment.

They are forked from one process that has imported everything, so that a run begins to work at
once: most moments of a fresh one pass with imports, when there is nothing to lose.
"""

import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from rcnnpipe.cli import STAGES, main, module_name

# What the stages import, which import everything else.
MODULES = (
    "rcnnpipe.detection_sources",
    "rcnnpipe.evaluation.scores",
    "rcnnpipe.finetuning.images",
    "rcnnpipe.linear.mining",
    "rcnnpipe.proposals.selective_search",
    "rcnnpipe.report.show",
    "rcnnpipe.training.classifier",
)


def after(seconds: float) -> Callable[[float], bool]:
    """When a run is to be stopped: so many seconds after its start."""
    return lambda elapsed: elapsed > seconds


class Launcher:
    """Starts runs, one at a time; a context manager."""

    def __enter__(self) -> "Launcher":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.launcher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        assert self._answer(None) == "ready"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.communicate(timeout=30)

    def run(
        self,
        words: Sequence[object],
        log: Path,
        stop: Callable[[float], bool] = lambda elapsed: False,
        with_signal: signal.Signals = signal.SIGKILL,
        largest_file: int | None = None,
    ) -> tuple[int, float]:
        """Run a command to its end, or until all its processes are sent a signal.

        Args:
            words: the command line without the program's name.
            log: file for what it prints.
            stop: asked every millisecond, given the seconds that have passed.
            with_signal: what is sent then, once.
            largest_file: bytes after which writing fails, as on a full disk.

        Returns:
            The exit code, -9 for a run that was killed, and the seconds it took.
        """
        assert self._server.stdin is not None
        job = {"words": [str(word) for word in words], "log": str(log), "limit": largest_file}
        self._server.stdin.write(json.dumps(job).encode() + b"\n")
        process = int(self._answer(None))
        started, sent = time.monotonic(), False
        while (answer := self._answer(0.001)) == "":
            if not sent and stop(time.monotonic() - started):
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process, with_signal)
                sent = True
        return int(answer), time.monotonic() - started

    def _answer(self, timeout: float | None) -> str:
        """The server's next line, or nothing when none comes in time."""
        assert self._server.stdout is not None
        ready, _, _ = select.select([self._server.stdout], [], [], timeout)
        return self._server.stdout.readline().decode().strip() if ready else ""


def _serve() -> None:
    stages = [f"rcnnpipe.stages.{module_name(name)}" for name in STAGES]
    for module in (*MODULES, *stages):
        importlib.import_module(module)
    gc.freeze()  # or every child would copy the memory of all modules
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        output, into = os.pipe()
        process = os.fork()
        if process == 0:
            os.setpgid(0, 0)
            if job["limit"] is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(into, 1)
            os.dup2(into, 2)
            _become(job["words"])
        with suppress(OSError):  # it did so itself
            os.setpgid(process, process)
        print(process, flush=True)
        os.close(into)
        _, status = os.waitpid(process, 0)
        # Not until its end: a process that the run started may hold it a moment longer.
        os.set_blocking(output, False)
        with suppress(BlockingIOError), open(job["log"], "ab") as log:
            log.write(os.read(output, 2**16))
        os.close(output)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)


def _become(words: list[str]) -> NoReturn:
    """Run the command and end at once: an interpreter's end with all modules takes seconds."""
    code: object = 1
    # Whoever started the tests in the background of a shell may have interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(words, prog_name="rcnnpipe")
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
