"""Training with validation: the ordinary evaluation, run every `train.validate_every` steps."""

import os

from glip.data.catalog import read_set
from glip.data.mixture import resolve
from glip.evaluate.validate import Validator
from glip.experiment import Experiment
from glip.train.run import readable_names


def validator_of(experiment: Experiment) -> Validator | None:
    """What validates a model during a training; None where it never validates.

    Raises:
        GlipError: a validation set that is not there or cannot be used, before hours of other work.
    """
    data, most = experiment.data, experiment.train.validate_images
    if not (data.validate and experiment.train.validate_every):
        return None
    entries = {row.name: resolve(row, data) for row in data.validate}
    short = readable_names(list(entries))
    sets = {short[name]: read_set(entry, data.root).samples for name, entry in entries.items()}
    for name, samples in sets.items() if os.environ.get("RANK", "0") == "0" else ():
        number = f"{most} of {len(samples)} samples, evenly spread" if 0 < most < len(samples) else "all samples"
        print(f"{name}: validating on {number}")
    return Validator(sets, images=most)
