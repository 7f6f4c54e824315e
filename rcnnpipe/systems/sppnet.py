"""SPP-net as data: He et al. 2014 (arXiv 1406.4729) and the authors' code, ShaoqingRen/SPP_net.

Where the two differ the paper is the default and the code a setting (the facts sheet lists them).
Nothing here computes or imports anything heavy: commands take their defaults from it.
"""

from rcnnpipe.systems.rcnn import Sampling, Solver

# Section 4.2: a quarter are objects, at least half in one; background overlaps one a little.
SAMPLING = Sampling(batch_size=128, foreground=32, background_from=0.1, mirror=False)

# Section 4.2: 250k batches at 1e-4, then 50k at 1e-5, the same for all layers and biases. The
# authors' solver: 1e-3, 1e-4, 1e-5 for 30k each, biases twice as fast.
SOLVER = Solver(
    iterations=300_000,
    learning_rate=1e-4,
    step=250_000,
    bias_multiplier=1.0,
    classifier_multiplier=1.0,
)
