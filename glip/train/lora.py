"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: linear layers that learn a change of low rank and nothing else.

Only training needs peft. What it learned is two small matrices for each layer, which ``model/adapt.py`` adds to the
weights of the model.
"""

from torch import nn

from glip.config import TuneConfig
from glip.errors import ConfigError, needs
from glip.model.adapt import LORA_B
from glip.model.glip import GLIP
from glip.shapes import Tensor

_NAME = "default"  # of the adapter, inside peft


def add_lora(model: GLIP, config: TuneConfig, *, int8: bool) -> None:
    """Let the layers that ``config.targets`` names learn a change of rank ``config.rank``; freeze all other weights.

    ``int8``: the matrices of the text encoder are stored in 8 bits, which would round a merged change away.

    Raises:
        GlipError: peft is missing, a target that matches no layer or an int8 matrix, or too high a rank.
    """
    with needs("lora"):
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import Linear

    class Layer(Linear):
        """The layer as the fusion sees it, which multiplies its weight into others instead of calling it."""

        @property
        def weight(self) -> Tensor:
            return self.get_base_layer().weight + self.get_delta_weight(_NAME)

    names = _chosen(model, config, int8)
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names)
    settings._register_custom_module({nn.Linear: Layer})
    inject_adapter_in_model(settings, model, _NAME)


def lora_weights(model: GLIP, config: TuneConfig) -> dict[str, Tensor]:
    """The matrices of an ``Adaptation``; alpha / rank is multiplied into the second of each layer."""
    learned = {
        name.replace(f".{_NAME}.", "."): value for name, value in model.named_parameters() if value.requires_grad
    }
    scale = config.alpha / config.rank
    return {name: value.detach() * (scale if name.endswith(LORA_B) else 1) for name, value in learned.items()}


def _chosen(model: GLIP, config: TuneConfig, int8: bool) -> list[str]:
    """The names of the layers to adapt."""
    layers = {name: min(one.weight.shape) for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    chosen = dict[str, None]()
    for target in config.targets:
        found = [name for name in layers if f".{target}." in f".{name}."]
        rounded = [name for name in found if int8 and name.startswith("language.")]
        low = [name for name in found if layers[name] < config.rank]
        if rounded or low or not found:
            known = ", ".join(sorted({name.split(".")[-1] for name in layers}))
            wrong = f"targets: {target!r} matches no layer: give a part of a name, such as text.layer or {known}"
            if low:
                wrong = f"rank: got {config.rank}: give at most {layers[low[0]]}, the smaller side of {low[0]}"
            if rounded:
                wrong = f"targets: {target!r} matches {rounded[0]}, an int8 matrix, which stays as it is: give others"
            raise ConfigError(wrong)
        chosen |= dict.fromkeys(found)
    return list(chosen)
