"""A short fine-tuning by one process or several, without dropout: each rank has its own masks."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rcnnpipe.models.backbones import Network, create_network
from rcnnpipe.systems.rcnn import Sampling, Solver
from rcnnpipe.training.distributed import join_ranks
from rcnnpipe.training.finetuning import WindowLoss, WindowSource, new_trainer
from rcnnpipe.training.loop import train
from rcnnpipe.training.windows import gather_windows, label_windows
from tests.training.made import draw_records, propose_near

SAMPLING = Sampling(batch_size=17, foreground=5)  # ranks have unequal shares
ITERATIONS = 6


def network_of() -> Network:
    network = create_network("demo", 3, torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def main(out: Path) -> None:
    """Train, and write weights and curves."""
    with tempfile.TemporaryDirectory() as folder, join_ranks("cpu") as ranks:
        records = draw_records(Path(folder), 5)
        proposals = [propose_near(record) for record in records]
        windows = gather_windows(label_windows(records, proposals, 2, SAMPLING, {}), SAMPLING)
        network = network_of()
        trainer = new_trainer(network, Solver(learning_rate=0.01), ranks)
        batches = WindowSource(windows, records, network, SAMPLING, ranks).batches(0, ITERATIONS)
        loss = WindowLoss(network, SAMPLING.batch_size)
        for _ in train(trainer, batches, loss, ITERATIONS, log_every=2):
            pass
        if ranks.first:
            arrays: dict[str, Any] = network.tensors() | trainer.curves
            np.savez(out, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
