"""A short fine-tuning that is judged, by one process or several, without dropout."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcnnpipe.artifacts.store import make_header
from rcnnpipe.datasets import open_dataset
from rcnnpipe.evaluation.columns import truth_of
from rcnnpipe.finetuning.judging import AveragePrecision, HeldOut
from rcnnpipe.proposals.selection import proposals_for
from rcnnpipe.systems.rcnn import Solver
from rcnnpipe.training.distributed import from_first_rank, gather_items, join_ranks
from rcnnpipe.training.finetuning import WindowLoss, WindowSource, new_trainer
from rcnnpipe.training.loop import train
from rcnnpipe.training.validation import Validation
from rcnnpipe.training.windows import gather_windows, label_windows
from tests.stages.test_finetune import coco_of
from tests.training.made import write_proposals
from tests.training.run_ranks import SAMPLING, network_of

# Not Adam: it divides by what may be 0 but for rounding, which differs between ranks.
SOLVER = Solver(
    iterations=6, learning_rate=0.02, schedule="cosine", warm_up=2, clip=0.5, average=0.7
)


def main(out: Path) -> None:
    """Train, and write the best weights, the curves, and what ranks tell each other."""
    with tempfile.TemporaryDirectory() as place, join_ranks("cpu") as ranks:
        folder = Path(place)
        dataset = open_dataset(coco_of(folder / "data", 5), "train")
        file = write_proposals(folder / "proposals.h5", dataset)
        boxes = proposals_for(file, dataset, 0, {})
        windows = gather_windows(label_windows(dataset.records, boxes, 2, SAMPLING, {}), SAMPLING)
        network = network_of()
        classes = dataset.classes
        header = make_header(
            "model", stage="made", version=1, settings={}, inputs={}, classes=classes
        )
        held = HeldOut(dataset, truth_of(dataset), file)
        judge = AveragePrecision(network, header, held, ranks, out, "fp32", 1)
        validation = Validation(network, judge, every=2, patience=3)
        trainer = new_trainer(network, SOLVER, ranks)
        batches = WindowSource(windows, dataset.records, network, SAMPLING, ranks).batches(0, 6)
        loss = WindowLoss(network, SAMPLING.batch_size)
        for _ in train(trainer, batches, loss, 6, log_every=3, validation=validation):
            pass
        gathered = gather_items(list(range(7))[ranks.rank :: ranks.world], ranks)
        first = torch.full((2,), ranks.rank, dtype=torch.float64)
        from_first_rank([first], ranks)
        assert gathered == list(range(7))
        assert first.tolist() == [0, 0]
        if ranks.first:
            arrays: dict[str, Any] = validation.best_tensors | trainer.curves
            np.savez(out, best_iteration=validation.best_iteration, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
