"""Where to compute, and which share of the work is this process's under torchrun."""

import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcnnpipe.errors import SettingError

# PyTorch takes seconds to import, and stages without a network ask here for their rank.
if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Rank:
    """This process among those torchrun started; alone it is number 0 of 1."""

    number: int
    world: int
    local: int


def this_rank() -> Rank:
    """Read what torchrun sets in the environment."""
    environment = os.environ
    return Rank(
        int(environment.get("RANK", "0")),
        int(environment.get("WORLD_SIZE", "1")),
        int(environment.get("LOCAL_RANK", "0")),
    )


def choose_device(name: str, precision: str = "fp32") -> "torch.device":
    """The device for "auto", "cpu" or "cuda"; with several ranks, each takes its own GPU.

    Args:
        name: see above.
        precision: what it is to compute in; one that the processor emulates is warned of.

    Raises:
        SettingError: CUDA was asked for and is not there.
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        if precision != "fp32" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
            _log.warning("this processor emulates %s; --precision fp32 is faster", precision)
        _keep_freed_memory()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingError("--device cuda was asked for, but PyTorch finds none; use --device cpu")
    return torch.device("cuda", this_rank().local % torch.cuda.device_count())


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether PyTorch raised it because something does not fit, or its size into 64 bits."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(word in str(error).lower() for word in ("allocate", "overflow"))


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of giving it back to the system.

    It is handed out again in the next batch; from the system each page would come as zeros, which
    took a third of the processor's time in training. Elsewhere than on glibc nothing happens.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # large blocks out of the heap as well
        mallopt(_M_TRIM_THRESHOLD, -1)  # and the heap is never cut


def wait_for_all() -> None:
    """Return when every rank has come here; at once where there is one."""
    if this_rank().world == 1:
        return
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    distributed.barrier()
