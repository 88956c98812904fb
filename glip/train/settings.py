"""What is refused before anything long begins: a batch that cannot be shared, and a folder with another run."""

from pathlib import Path

from glip.errors import ConfigError
from glip.experiment import Experiment
from glip.train.checkpoint import LAST, read_state
from glip.train.distributed import Group
from glip.train.log import summary_writer
from glip.train.resume import refuse_another


def check_experiment(experiment: Experiment, group: Group) -> None:
    """Refuse a batch size that the processes cannot share, and TensorBoard that is not installed.

    Raises:
        ConfigError: naming the key and what is allowed.
    """
    if experiment.train.batch_size % group.size:
        raise ConfigError(
            f"train.batch_size: {experiment.train.batch_size} images cannot be shared by {group.size} processes: give "
            f"a multiple of {group.size}"
        )
    if experiment.train.tensorboard:
        summary_writer()


def check_folder(experiment: Experiment) -> None:
    """Make the output folder, and refuse to go on with what is another run's.

    Raises:
        GlipError: a checkpoint of another config, or one that cannot be read.
        OSError: the folder cannot be made.
    """
    folder = Path(experiment.train.output)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LAST).is_file():
        state = read_state(folder / LAST, mapped=True)
        refuse_another(state["config"], experiment, done=int(state["progress"]["step"]))
