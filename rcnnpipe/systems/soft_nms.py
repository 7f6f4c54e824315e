"""Soft-NMS as data: Bodla et al. 2017 and the authors' code, ``lib/nms/cpu_nms.pyx``.

Nothing here computes or imports anything heavy: commands take their defaults from it.
"""

GREEDY, LINEAR, GAUSSIAN = KINDS = ("greedy", "linear", "gaussian")

SIGMA = 0.5  # the authors' code
FLOOR = 0.001  # the authors' code; it looks only at boxes that overlap another, we at all
