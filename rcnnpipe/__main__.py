"""Run ``python -m rcnnpipe``, as torchrun needs it."""

from rcnnpipe.cli import main

main(prog_name="rcnnpipe")
