"""ChatGLM2, ChatGLM3 and GLM-4 as transformers' own `GlmForCausalLM`: its configuration and its names for the weights.

Both turn neighbouring numbers of the first half of a head, and both have the gate in the first half of one matrix: no
number changes. The fused query_key_value is cut by rows.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor

from glmft.errors import ConfigError
from glmft.weights import Stream

LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
IN_LAYERS = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
FUSED, PARTS = "self_attention.query_key_value", ("q_proj", "k_proj", "v_proj")
OUTSIDE = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
}


@dataclass(frozen=True)
class Piece:
    """A module of transformers' layout and the rows [first, end) of ours that it is; None: all of them."""

    name: str
    first: int = 0
    end: int | None = None


def pieces_of(module: str, config: Any) -> list[Piece]:
    """What a module of the official layout is in transformers'. Raises ConfigError for one that has no counterpart.

    Args:
        config: of the official layout.
    """
    if module in OUTSIDE:
        return [Piece(OUTSIDE[module])]
    match = LAYER.fullmatch(module)
    if match and match[2] in IN_LAYERS:
        return [Piece(f"model.layers.{match[1]}.{IN_LAYERS[match[2]]}")]
    if match and match[2] == FUSED:
        own, group = (n * config.kv_channels for n in (config.num_attention_heads, config.multi_query_group_num))
        bounds = (0, own, own + group, own + 2 * group)
        return [
            Piece(f"model.layers.{match[1]}.self_attn.{name}", first, end)
            for name, first, end in zip(PARTS, bounds, bounds[1:], strict=False)
        ]
    raise ConfigError(f"{module}: has no counterpart in transformers' GlmForCausalLM")


def native_streams(streams: Iterable[Stream], config: Any) -> list[Stream]:
    """The tensors of the official layout under transformers' names."""
    return [
        cut(stream, f"{piece.name}.{kind}", piece.first, piece.end)
        for stream in streams
        if not stream.name.endswith("rotary_pos_emb.inv_freq")  # of base 10000 whatever the model's is; not used
        for module, _, kind in [stream.name.rpartition(".")]
        for piece in pieces_of(module, config)
    ]


def cut(stream: Stream, name: str, first: int, end: int | None) -> Stream:
    """Rows [first, end) of a stream, under another name."""
    if end is None:
        return Stream(name, stream.shape, stream.dtype, stream.parts)

    def parts() -> Iterator[Tensor]:
        row = 0
        for part in stream.parts():
            wanted = part[max(0, first - row) : max(0, end - row)]
            row += len(part)
            if len(wanted):
                yield wanted

    return Stream(name, (end - first, *stream.shape[1:]), stream.dtype, parts)


def native_config(config: Any, stops: list[int] | None) -> transformers.GlmConfig:
    """transformers' configuration of the same model. Raises ConfigError for what it cannot say.

    Args:
        config: of the official layout.
        stops: ids that end an answer.
    """
    if config.family == "glm":
        raise ConfigError("ChatGLM-6B has no counterpart in transformers: --to transformers takes glm2, glm3 and glm4")
    if config.add_bias_linear:
        raise ConfigError(
            "add_bias_linear: transformers' GlmForCausalLM has no biases behind attention and feed-forward"
        )
    for name in ("pre_seq_len", "prompt_seq_len"):
        if getattr(config, name):
            raise ConfigError(f"{name}: transformers' GlmForCausalLM has no place for virtual tokens")
    rope = {"rope_type": "default", "rope_theta": 10000.0 * config.rope_ratio, "partial_rotary_factor": 0.5}
    if config.rope_scales_positions:
        rope |= {"rope_type": "linear", "rope_theta": 10000.0, "factor": float(config.rope_ratio)}
    return transformers.GlmConfig(
        architectures=["GlmForCausalLM"],
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        hidden_act="silu",
        attention_bias=config.add_qkv_bias,
        attention_dropout=0.0,
        max_position_embeddings=config.seq_length,
        rms_norm_eps=config.layernorm_epsilon,
        rope_parameters=rope,
        tie_word_embeddings=config.tie_word_embeddings,
        eos_token_id=stops or config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=None,
        use_cache=True,
        dtype=config.dtype,
    )
