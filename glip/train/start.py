"""An experiment as a training begins it: YAML, overrides, and the config of the model it starts from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glip.errors import ConfigError
from glip.experiment import Experiment, merge, read_tree, to_dict
from glip.schema import parse


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment: a YAML file (a path, or a name under the installed configs) plus ``key.path=value``.

    With ``train.start`` the starting model's config holds wherever the YAML and the overrides say nothing; only the
    name is a new one, that of the output folder.

    Raises:
        ConfigError: missing file, broken YAML, unknown key, wrong type, choice or range.
        CheckpointError: a starting model that cannot be read.
    """
    tree = read_tree(path, overrides)
    stated = parse(Experiment, tree)
    start, wise_ft = stated.train.start, stated.train.wise_ft
    if start is None:
        if wise_ft:
            raise ConfigError(f"train.wise_ft: got {wise_ft:g} without train.start, whose weights it averages")
        return stated
    from glip.model.weights import pretrained_config  # late: glip config needs no torch where nothing is started from

    config = pretrained_config(start)
    inference = replace(config.inference, inclusive=False, temperature=1.0)  # boxes as our readers give them
    name = Path(stated.train.output).resolve().name
    usual = to_dict(replace(config, inference=inference, thresholds={}, name=name))  # which are of its weights too
    return parse(Experiment, {**tree, "model": merge(usual, tree.get("model") or {})})
