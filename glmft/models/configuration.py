"""Configurations under `model_type: chatglm`, which all official folders share.

`AutoConfig` finds `ChatGLMConfig`; its `from_dict` returns the configuration class of the family that the keys prove,
and the other Auto classes dispatch on that class.
"""

import json
import math
from typing import Any, ClassVar

from transformers import GenerationConfig, PreTrainedConfig

from glmft.errors import ConfigError
from glmft.family import FAMILY_KEY, family_of_config
from glmft.models.nf4 import Quantisable
from glmft.models.quantised import BITS


class ChatGLMConfig(Quantisable, PreTrainedConfig):
    """What the families have in common: the model type, and the settings of virtual tokens.

    Args:
        pre_seq_len, prefix_projection, prefix_hidden_size: P-Tuning v2, see `glmft.models.prefix`. The first two are
            official keys; the width inside the projection is the model's own unless it is given.
        prompt_seq_len, prompt_encoder, prompt_hidden_size: prompts at the embedding, see `glmft.models.prompt`.
        quantization_bit: 4 or 8 if the layers' weights are integers, see `glmft.models.quantised`. An official key.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    auto_map: ClassVar[dict[str, str]] = {}  # shown, a folder's own would have the Auto classes run its code

    pre_seq_len: int | None = None
    prefix_projection: bool = False
    prefix_hidden_size: int | None = None
    prompt_seq_len: int | None = None
    prompt_encoder: str = "none"
    prompt_hidden_size: int | None = None
    quantization_bit: int | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "ChatGLMConfig":
        if cls is not ChatGLMConfig:
            return super().from_dict(config_dict, **kwargs)
        kind = ChatGLM6BConfig if family_of_config(config_dict) == "glm" else ChatGLM2Config
        return kind.from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any):
        self._recorded = {k: v for k, v in kwargs.items() if k in (*_TAKEN_OUT, *_generation_keys())}
        if "auto_map" in kwargs:
            self._recorded["auto_map"] = kwargs.pop("auto_map")
        super().__post_init__(**kwargs)
        # The class of the official code: others (vLLM, official scripts) go by it, and never find ours.
        self._recorded["architectures"] = self.architectures or ["ChatGLMModel"]
        problems = []
        if self.quantization_bit not in (None, 0, *BITS):
            problems.append(f"config.json: quantization_bit {self.quantization_bit!r} is neither 4 nor 8")
        if getattr(self, "quantization_embeddings", False):
            problems.append(
                "config.json: quantization_embeddings true is not supported; take a folder whose embedding is in "
                "floats (THUDM/chatglm-6b-int4, not -qe), or quantise the full-precision one with glmft quantize"
            )
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        """Also what peft measures a prefix by."""
        return {**super().to_dict(), **{name: getattr(self, name) for name in _MEASURES if hasattr(self, name)}}

    def to_json_string(self, use_diff: bool = True) -> str:
        """As official files are: every key that was loaded, defaults too, and `torch_dtype`, which their code reads."""
        output = {key: value for key, value in self.to_dict().items() if key not in _TRANSFORMERS_OWN}
        # transformers takes these out of a config.json, or puts a local path in; official code reads them there.
        output.update(output.pop("_recorded", {}))
        if "num_hidden_layers" in output:  # GLM-4's code reads it beside its own name
            output["num_hidden_layers"] = self.num_layers
        if output.get("dtype") is not None:
            output["torch_dtype"] = output["dtype"]
        for name in _LEFT_OUT_IF_NONE:
            if output.get(name) is None:
                output.pop(name, None)
        if self.prompt_seq_len is None:
            output.pop("prompt_encoder")
        return json.dumps(output, ensure_ascii=False, indent=2) + "\n"


def _generation_keys() -> tuple[str, ...]:
    return tuple(GenerationConfig._get_default_generation_params())


_LEFT_OUT_IF_NONE = (
    "rope_ratio_scales",
    "prefix_hidden_size",
    "prompt_seq_len",
    "prompt_hidden_size",
    "quantization_bit",
)
_TAKEN_OUT = ("_name_or_path", "num_hidden_layers", "attn_implementation")
_MEASURES = ("head_dim", "num_key_value_heads")
_TRANSFORMERS_OWN = {
    *_MEASURES,
    "chunk_size_feed_forward",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
}


class ChatGLM6BConfig(ChatGLMConfig):
    """ChatGLM-6B: the keys of its official config.json."""

    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "inner_hidden_size",
        "num_key_value_heads": "num_attention_heads",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    pad_token_id: int | None = 3
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    family: ClassVar[str] = "glm"
    rope_line: ClassVar[str | None] = None

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        problems = []
        if not self.position_encoding_2d:
            problems.append("config.json: position_encoding_2d false has no official checkpoint and is not supported")
        if self.hidden_size % (4 * self.num_attention_heads):
            problems.append(
                f"config.json: hidden_size {self.hidden_size} is no multiple of 4 times num_attention_heads "
                f"{self.num_attention_heads} (rotary pairs on halves of a head)"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads of each, and the size of one."""
        return self.num_layers, self.num_attention_heads, self.hidden_size // self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def prefix_embedding_size(self) -> int:
        """Width of a projected prefix's embedding."""
        return self.hidden_size


class ChatGLM2Config(ChatGLMConfig):
    """ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2: the keys of their official config.json.

    Args:
        kv_channels: size of one attention head.
        multi_query_group_num: key/value heads, each serving `num_attention_heads / multi_query_group_num` query heads.
        rope_ratio: stretches the rotary positions; see `rope_ratio_scales`.
        rope_ratio_scales: `base` (newer official code: the rotary base is multiplied) or `positions` (chatglm2-6b-32k's
            older code: positions are divided). Inferred where it is not given.
    """

    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "intermediate_size": "ffn_hidden_size",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    seq_length: int = 2048
    layernorm_epsilon: float = 1e-5
    add_bias_linear: bool = False
    add_qkv_bias: bool = True
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    rope_ratio: float = 1
    rope_ratio_scales: str | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        family = family_of_config(kwargs)
        super().__post_init__(**kwargs)
        if family is not None:
            setattr(self, FAMILY_KEY, family)
        problems = []
        if not self.multi_query_attention:
            problems.append("config.json: multi_query_attention false has no official checkpoint and is not supported")
        elif self.num_attention_heads % self.multi_query_group_num:
            problems.append(
                f"config.json: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"multi_query_group_num {self.multi_query_group_num}"
            )
        if self.kv_channels % 4:
            problems.append(f"config.json: kv_channels {self.kv_channels} is no multiple of 4 (rotary pairs on a half)")
        if self.rope_ratio_scales not in (None, "base", "positions"):
            problems.append(f"config.json: rope_ratio_scales {self.rope_ratio_scales!r} is neither base nor positions")
        if problems:
            raise ConfigError(problems)

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads of each, and the size of one."""
        return self.num_layers, self.multi_query_group_num, self.kv_channels

    @property
    def prefix_embedding_size(self) -> int:
        """Width of a projected prefix's embedding: here that of all keys and values, as in the official code."""
        return 2 * math.prod(self.key_value_shape)

    @property
    def family(self) -> str | None:
        """`glm2`, `glm3`, or None where the folder does not say."""
        return getattr(self, FAMILY_KEY, None)

    @property
    def rope_line(self) -> str | None:
        """Which of the two official formulas of `rope_ratio` is taken, for the user's log; None without one."""
        if self.rope_ratio == 1 or self.family == "glm4":  # which has one of them only
            return None
        taken = "divides the positions" if self.rope_scales_positions else "multiplies the rotary base"
        other = "base" if self.rope_scales_positions else "positions"
        return (
            f"rope_ratio {self.rope_ratio:g} {taken}; if this checkpoint's code does it the other way, set "
            f'"rope_ratio_scales": "{other}" in config.json'
        )

    @property
    def rope_scales_positions(self) -> bool:
        if self.rope_ratio_scales is not None:
            return self.rope_ratio_scales == "positions"
        return self.rope_ratio != 1 and self.family == "glm2" and self.seq_length == 32768
