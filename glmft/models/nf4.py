"""Weights in 4-bit NormalFloat (Dettmers et al., 2023), by way of bitsandbytes and transformers."""

import copy
import importlib.util
from typing import Any

import torch
from torch import nn

from glmft.errors import ConfigError

# Double quantisation: the scales of the blocks of 64 are quantised in their turn, in blocks of 256.
NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
IN_FLOATS = ["output_layer", "lm_head", "prefix_encoder", "prompt_encoder"]


class Quantisable:
    """A part of a configuration: how the weights of the layers are held."""

    quantization_bit: int | None = None

    @property
    def quantisation(self) -> str | None:
        """`4` or `8` (integers), a name of bitsandbytes (`nf4`), or None: floats."""
        if self.quantization_bit:
            return str(self.quantization_bit)
        return name_of(self.quantization_config) if self.uses_bitsandbytes else None

    @property
    def uses_bitsandbytes(self) -> bool:
        return getattr(self, "quantization_config", None) is not None


def as_dict(given: Any) -> dict[str, Any]:
    """A `quantization_config` as the dict that config.json holds."""
    return given if isinstance(given, dict) else given.to_dict()


def name_of(given: Any) -> str:
    """`nf4` or `fp4`, `llm.int8` for 8 bits, of a `quantization_config`; its method's name if it is no bitsandbytes."""
    settings = as_dict(given)
    if settings.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return str(settings["quant_method"])
    return "llm.int8" if settings.get("load_in_8bit") else str(settings.get("bnb_4bit_quant_type", "fp4"))


def is_installed() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def check_usable(given: Any, place: str) -> None:
    """Raises ConfigError if a `quantization_config` is of another library, or bitsandbytes is not installed."""
    method = as_dict(given).get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise ConfigError(
            f"{place}: is quantised by {method!r}; of those only bitsandbytes is supported; take the "
            "full-precision base, perhaps with --quantization_bit 4"
        )
    if not is_installed():
        raise ConfigError(f"{place}: needs bitsandbytes, which is not installed; pip install 'glmft[quant]'")


def for_transformers(config: Any, stored: bool, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The configuration and further arguments that `from_pretrained` takes, to compute in `dtype`.

    Args:
        config: with a `quantization_config` where the weights are, or shall be, those of bitsandbytes.
        stored: whether the files hold such weights already.
    """
    given = getattr(config, "quantization_config", None)
    if given is None:
        return config, {}
    from transformers import BitsAndBytesConfig

    config, settings = copy.copy(config), {**as_dict(given), "bnb_4bit_compute_dtype": dtype_name(dtype)}
    if stored:
        config.quantization_config = settings
        return config, {}
    del config.quantization_config
    settings = {key: value for key, value in settings.items() if key != "quant_method"}
    return config, {"quantization_config": BitsAndBytesConfig(**settings, llm_int8_skip_modules=IN_FLOATS)}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def keep_trainable(model: nn.Module) -> None:
    """Undo what stands in the way of training over bitsandbytes' weights; nothing of it concerns other models.

    At the first forward pass in eval mode bitsandbytes would put them into another form on CPUs with AVX512-BF16:
    scales rounded to bf16, shapes that are no multiple of 64 refused, no gradient passed on when training continues.
    And transformers would refuse `half()`, which DeepSpeed calls in fp16 and which leaves these weights alone.
    """
    if getattr(model, "is_quantized", False):
        model.is_quantized = False
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
