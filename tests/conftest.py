"""One thread for every computation: tests run many processes, and bytes depend on the number."""

import os

# Read when PyTorch and OpenBLAS are first imported, by this process and by those it starts.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
