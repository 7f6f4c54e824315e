"""SPP-net: from a cache of pooled features to fully connected layers. He et al. 2014, 4.2."""

from pathlib import Path
from typing import Any

from rcnnpipe.artifacts.features import open_features
from rcnnpipe.errors import SettingError
from rcnnpipe.extraction.maps import POOLED
from rcnnpipe.finetuning.run import Run
from rcnnpipe.finetuning.windows import network_to_train, tell_windows
from rcnnpipe.models.weights import require_made_by
from rcnnpipe.training.cached import RowSource, windows_of
from rcnnpipe.training.finetuning import WindowLoss, new_trainer
from rcnnpipe.training.windows import check_sampling


def finetune_on_rows(run: Run) -> int:
    """Train what follows pool5 on features of it; returns how many iterations."""
    options, ranks = run.options, run.ranks
    check_sampling(run.sampling, ranks.world * options["accumulate"])
    if Path(options["init"]).suffix != ".h5":
        raise SettingError(
            f"--system sppnet needs --init MODEL.h5, the model that made {options['features']}; "
            "rcnnpipe pretrain --pyramid makes one"
        )
    with open_features(options["features"], options["workers"]) as features:
        inputs: dict[str, Any] = {"features": features.header}
        trained_from = options["train_from"] or "fc6"
        asked = {**options, "train_from": trained_from}
        network, resolved = network_to_train(asked, inputs, len(features.header.classes))
        require_made_by(options["features"], features.header, Path(options["init"]), inputs["init"])
        names = network.layer_names
        if network.head is None or trained_from not in names[names.index(POOLED) + 1 :]:
            behind = "fc6, fc7 and logits, of a model with a pyramid"
            raise SettingError(f"only what follows pool5 learns from its features: {behind}")
        features.require_length(POOLED, network.layer_sizes[POOLED])
        resolved |= {"train-from": trained_from}
        header = run.header(inputs, features.header.classes, resolved)
        windows = windows_of(features, run.sampling)
        tell_windows(windows, len(features.image_ids))
        source = RowSource(
            *(windows, features, POOLED, run.sampling, ranks),
            seed=options["seed"],
            accumulate=options["accumulate"],
            memory=options["memory"] * 2**20,
        )
        trainer = new_trainer(network, run.solver, ranks, options["precision"], options["seed"])
        loss = WindowLoss(network, options["batch_size"], POOLED)
        return run.train(header, network, trainer, source, loss)
