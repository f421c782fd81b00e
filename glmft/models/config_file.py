"""What a model folder's JSON files may say: the keys that something here or in transformers acts on, by type and range.

Other keys are kept for those who read the folder later, and never reach transformers.
"""

from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, one_line
from glmft.family import NATIVE_TYPES
from glmft.reading import read_json, read_json_if_there
from glmft.schema import FLAG, NULL, Kind, list_of, number, one_of, problems, table_of, text, whole
from glmft.settings.config import ATTENTION

OTHER_GLM = {
    "glm4_moe": "GLM-4.5, a mixture of experts",
    "glm4_moe_lite": "GLM-4.7-Flash, a mixture of experts",
    "glm_moe_dsa": "GLM-5, a mixture of experts",
    "glm4v": "GLM-4.1V, a model of images and text",
    "glm4v_moe": "GLM-4.5V, a model of images and text",
    "glm46v": "GLM-4.6V, a model of images and text",
    "glm_image": "GLM-Image, a model of images",
    "glm_ocr": "GLM-OCR, a model of images and text",
    "glmasr": "GLM-ASR, a model of speech",
}
LARGEST = 4 << 20  # bytes of a config.json
_FORMAT = one_of("float16", "bfloat16", "float32", "float64") | NULL
_TOKEN = whole(0, 1 << 24)
_TOKENS = _TOKEN | list_of(_TOKEN, 100) | NULL
_WIDTH = whole(1, 1 << 20)

_BITSANDBYTES = {
    "quant_method": text(longest=100),
    "_load_in_4bit": FLAG,
    "_load_in_8bit": FLAG,
    "load_in_4bit": FLAG,
    "load_in_8bit": FLAG,
    "llm_int8_enable_fp32_cpu_offload": FLAG,
    "llm_int8_has_fp16_weight": FLAG,
    "llm_int8_skip_modules": list_of(text(longest=300), 1000) | NULL,
    "llm_int8_threshold": number(0, 1e6),
    "bnb_4bit_compute_dtype": _FORMAT,
    "bnb_4bit_quant_storage": text(longest=20),
    "bnb_4bit_quant_type": one_of("nf4", "fp4"),
    "bnb_4bit_use_double_quant": FLAG,
}


def _is_bitsandbytes(value: Any) -> bool:
    """Whether a `quantization_config` is of known keys; what names another library is told so by `check_usable`."""
    if not isinstance(value, dict) or not _BITSANDBYTES["quant_method"].passes(value.get("quant_method", "")):
        return False
    if value.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return True
    return value.keys() <= _BITSANDBYTES.keys() and not problems(value, _BITSANDBYTES, "")


# What a configuration class of ours reads, and what transformers' own does of it.
MODEL_KEYS: dict[str, Kind] = {
    "model_type": one_of("chatglm"),
    "_name_or_path": text() | NULL,
    "name_or_path": text() | NULL,
    "glmft_family": text(longest=20),
    "architectures": list_of(text(), 10) | NULL,
    "auto_map": table_of(text() | list_of(text() | NULL, 10), 100) | NULL,
    "transformers_version": text(longest=100) | NULL,
    "dtype": _FORMAT,
    "torch_dtype": _FORMAT,
    "num_layers": whole(1, 10_000),
    "num_hidden_layers": whole(1, 10_000),
    "hidden_size": _WIDTH,
    "num_attention_heads": whole(1, 1 << 16),
    "inner_hidden_size": _WIDTH,
    "ffn_hidden_size": _WIDTH,
    "kv_channels": whole(1, 1 << 16),
    "multi_query_group_num": whole(1, 1 << 16),
    "vocab_size": whole(1, 1 << 24),
    "padded_vocab_size": whole(1, 1 << 24),
    "seq_length": whole(1, 1 << 24),
    "max_sequence_length": whole(1, 1 << 24),
    "layernorm_epsilon": number(0, 1),
    "initializer_range": number(0, 10),
    "rope_ratio": number(1e-6, 1e9),
    "rope_ratio_scales": one_of("base", "positions") | NULL,
    "position_encoding_2d": FLAG,
    "multi_query_attention": FLAG,
    "add_bias_linear": FLAG,
    "add_qkv_bias": FLAG,
    "use_cache": FLAG,
    "tie_word_embeddings": FLAG,
    "bos_token_id": _TOKEN | NULL,
    "mask_token_id": _TOKEN,
    "gmask_token_id": _TOKEN,
    "pad_token_id": _TOKEN | NULL,
    "eos_token_id": _TOKENS,
    "pre_seq_len": whole(0, 1 << 14) | NULL,
    "prefix_projection": FLAG,
    "prefix_hidden_size": whole(1, 1 << 16) | NULL,
    "prompt_seq_len": whole(0, 1 << 14) | NULL,
    "prompt_encoder": one_of("none", "mlp", "lstm"),
    "prompt_hidden_size": whole(1, 1 << 16) | NULL,
    "quantization_bit": one_of(0, 4, 8) | NULL,
    "quantization_embeddings": FLAG,
    "quantization_config": Kind("an object of bitsandbytes' settings", _is_bitsandbytes) | NULL,
}
# In transformers' own layout of GLM-4.
NATIVE_KEYS: dict[str, Kind] = {
    **{
        name: kind for name, kind in MODEL_KEYS.items() if name not in ("model_type", "num_layers", "padded_vocab_size")
    },
    "model_type": one_of(*NATIVE_TYPES),
    "num_key_value_heads": whole(1, 1 << 16),
    "head_dim": whole(1, 1 << 16),
    "intermediate_size": _WIDTH,
    "hidden_act": one_of("silu"),
    "attention_bias": FLAG,
    "attention_dropout": number(0, 1),
    "max_position_embeddings": whole(1, 1 << 24),
    "rms_norm_eps": number(0, 1),
    "partial_rotary_factor": number(0, 1),
    "rope_theta": number(1, 1e12),
    "rope_parameters": table_of(number(0, 1e12) | text(longest=100) | NULL, 20) | NULL,
    "rope_scaling": NULL,
}
# A name of transformers' for one of ours, which then decides.
ALIASES = {"num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size"}
# How text is generated, in generation_config.json and in config.json: what a batch of one answer each can do with.
GENERATION_KEYS: dict[str, Kind] = {
    "transformers_version": text(longest=100) | NULL,
    "_from_model_config": FLAG,
    "bos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "pad_token_id": _TOKENS,
    "max_length": whole(1) | NULL,
    "max_new_tokens": whole(1) | NULL,
    "min_length": whole(0, 1 << 20) | NULL,
    "min_new_tokens": whole(0, 1 << 20) | NULL,
    "do_sample": FLAG | NULL,
    "num_beams": whole(1, 64) | NULL,
    "num_return_sequences": one_of(1) | NULL,
    "use_cache": FLAG | NULL,
    "early_stopping": FLAG | one_of("never") | NULL,
    "temperature": number(0, 1e6) | NULL,
    "top_k": whole(0) | NULL,
    "top_p": number(0, 1) | NULL,
    "min_p": number(0, 1) | NULL,
    "typical_p": number(0, 1) | NULL,
    "repetition_penalty": number(1e-3, 1e3) | NULL,
    "length_penalty": number(-1e3, 1e3) | NULL,
    "no_repeat_ngram_size": whole(0, 1000) | NULL,
    "output_scores": one_of(False) | NULL,
    "output_attentions": one_of(False) | NULL,
    "output_hidden_states": one_of(False) | NULL,
    "return_dict_in_generate": one_of(False) | NULL,
    "remove_invalid_values": FLAG | NULL,
    "renormalize_logits": FLAG | NULL,
}


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json says, checked: the keys that count, and the others.

    Raises:
        ConfigError: one line for each value of a wrong type or beyond all bounds.
    """
    path = folder / "config.json"
    raw = read_json(path, LARGEST)
    kind = raw.get("model_type")
    if kind not in ("chatglm", *NATIVE_TYPES):
        raise ConfigError(f"{path}: {unknown_model(kind)}")
    kinds = {**GENERATION_KEYS, **(NATIVE_KEYS if kind in NATIVE_TYPES else MODEL_KEYS)}
    wrong = problems(raw, kinds, path)
    attention = raw.get("attn_implementation")
    if attention is not None and attention not in ATTENTION:
        wrong.append(f"{path}: attn_implementation is {one_line(repr(attention), 60)}, none of {', '.join(ATTENTION)}")
    if wrong:
        raise ConfigError(wrong)
    counts = {key: value for key, value in raw.items() if key in kinds and ALIASES.get(key) not in raw}
    return counts, {key: value for key, value in raw.items() if key not in counts}


def unknown_model(kind: Any) -> str:
    """Why a model type is refused; GLM's others by name."""
    known = f"chatglm, {', '.join(NATIVE_TYPES)}"
    if isinstance(kind, str) and kind in OTHER_GLM:
        return f"holds {OTHER_GLM[kind]} (model_type {kind}); glmft trains the dense text models ({known})"
    return f"model_type is {one_line(repr(kind), 60)}, none of {known}"


def check_generation(folder: Path) -> None:
    """Raises ConfigError if generation_config.json holds a value of a wrong type, or one that is not known here."""
    path = folder / "generation_config.json"
    given = read_json_if_there(path)
    wrong = problems(given, GENERATION_KEYS, path)
    wrong += [
        f"{path}: {one_line(key, 60)} is not known here; take it out, or set it to null"
        for key, value in given.items()
        if key not in GENERATION_KEYS and value is not None and value is not False
    ]
    if wrong:
        raise ConfigError(wrong)


def layers_of(names: Any) -> int:
    """How many layers tensors of these names make up."""
    numbers = {part for name in names if ".layers." in name for part in [name.split(".layers.", 1)[1].split(".", 1)[0]]}
    return len(numbers)
