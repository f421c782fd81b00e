"""Shapes of models: what the sums of memory and time need to know of one."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.family import NATIVE_TYPES, family_of_config
from glmft.reading import read_json

LARGEST, MOST_LAYERS = 1 << 31, 4096
Parameters = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """
    Args:
        layout: `glm` (ChatGLM-6B), `glm2` (ChatGLM2, ChatGLM3, GLM-4 in the official layout), `native-glm` or
            `native-glm4` (GLM-4 in transformers' own).
        vocabulary, hidden, layers: sizes.
        heads, groups, head: attention heads, those of keys and values, and the size of one.
        ffn: width of the feed-forward part.
        biases: whether query_key_value, and whether all linear modules have one.
        quantisation: 8, 4 or nf4, where the folder's own layers are so.
        stored: bytes of a number in the folder.
    """

    layout: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    groups: int
    head: int
    ffn: int
    biases: tuple[bool, bool] = (True, False)
    quantisation: str | None = None
    stored: int = 2

    @property
    def is_native(self) -> bool:
        return self.layout.startswith("native")

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding matrix."""
        return self.layout == "glm"

    @property
    def queries(self) -> int:
        """Numbers of one token's queries."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Numbers of one token's keys; as many are its values."""
        return self.groups * self.head

    @property
    def fused(self) -> int:
        """Width of the first feed-forward product: SwiGLU has two halves."""
        return self.ffn if self.layout == "glm" else 2 * self.ffn

    @property
    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """The linear modules of a layer by the last part of their names: inputs and outputs."""
        if self.is_native:
            first = {"q_proj": self.queries, "k_proj": self.keys, "v_proj": self.keys}
            modules = {name: (self.hidden, width) for name, width in first.items()}
            return modules | {
                "o_proj": (self.queries, self.hidden),
                "gate_up_proj": (self.hidden, self.fused),
                "down_proj": (self.ffn, self.hidden),
            }
        return {
            "query_key_value": (self.hidden, self.queries + 2 * self.keys),
            "dense": (self.queries, self.hidden),
            "dense_h_to_4h": (self.hidden, self.fused),
            "dense_4h_to_h": (self.ffn, self.hidden),
        }

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms of a layer."""
        more = ("post_self_attn_layernorm", "post_mlp_layernorm") if self.layout == "native-glm4" else ()
        return ("input_layernorm", "post_attention_layernorm", *more)

    def of_layer(self, number: int) -> Parameters:
        """Names and shapes of a layer's parameters."""
        return _of_layer(self, number)

    def weight_of(self, module: str, number: int) -> str:
        """The name of a linear module's weight in a layer."""
        return next(name for name in _of_layer(self, number) if name.endswith(f".{module}.weight"))

    def make_layer(self, number: int) -> Parameters:
        """See `of_layer`, which makes it once."""
        attention = {"glm": "attention", "glm2": "self_attention"}.get(self.layout, "self_attn")
        middle = {"glm": "transformer.", "glm2": "transformer.encoder."}.get(self.layout, "model.")
        first, in_mlp = f"{middle}layers.{number}.", ("dense_h_to_4h", "dense_4h_to_h", "gate_up_proj", "down_proj")
        parameters: Parameters = {}
        for norm in self.norms:
            parameters |= self._norm(f"{first}{norm}")
        for name, (inputs, outputs) in self.linear_modules.items():
            place = f"{first}{'mlp' if name in in_mlp else attention}.{name}"
            parameters[f"{place}.weight"] = (outputs, inputs)
            if self.biases[1] or (self.biases[0] and name in ("query_key_value", "q_proj", "k_proj", "v_proj")):
                parameters[f"{place}.bias"] = (outputs,)
        return parameters

    def _norm(self, name: str) -> Parameters:
        weight = {f"{name}.weight": (self.hidden,)}
        return weight | ({f"{name}.bias": (self.hidden,)} if self.layout == "glm" else {})

    @property
    def around(self) -> Parameters:
        """Names and shapes of the parameters that are in no layer: embedding, final norm, head."""
        words = (self.vocabulary, self.hidden)
        if self.layout == "glm":
            return {"transformer.word_embeddings.weight": words} | self._norm("transformer.final_layernorm")
        if self.layout == "glm2":
            head = {"transformer.output_layer.weight": words}
            head |= {"transformer.output_layer.bias": (self.vocabulary,)} if self.biases[1] else {}
            embedding = {"transformer.embedding.word_embeddings.weight": words}
            return embedding | self._norm("transformer.encoder.final_layernorm") | head
        return {"model.embed_tokens.weight": words} | self._norm("model.norm") | {"lm_head.weight": words}

    @property
    def parameters(self) -> Parameters:
        """All of them."""
        layers = [self.of_layer(i) for i in range(self.layers)]
        return {name: shape for part in (*layers, self.around) for name, shape in part.items()}

    @property
    def prefix_width(self) -> int:
        """Numbers of one virtual token's keys and values in all layers."""
        return 2 * self.layers * self.keys


@functools.lru_cache(maxsize=4096)
def _of_layer(shape: Shape, number: int) -> Parameters:
    return shape.make_layer(number)


def numbers(parameters: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers parameters are."""
    return sum(math.prod(shape) for shape in parameters.values())


_SIX = Shape("glm2", 65024, 4096, 28, 32, 2, 128, 13696)
OFFICIAL = {
    "chatglm-6b": Shape("glm", 130528, 4096, 28, 32, 32, 128, 16384, (True, True)),
    "chatglm2-6b": _SIX,
    "chatglm3-6b": _SIX,
    "glm-4-9b": replace(_SIX, vocabulary=151552, layers=40),
}


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that the keys of a config.json say. Raises ConfigError for one that is no whole number."""

    def number(*names: str, default: int) -> int:
        value = next((config[name] for name in names if config.get(name) is not None), default)
        most = MOST_LAYERS if "layers" in names[0] else LARGEST
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ConfigError(f"config.json: {names[0]} {value!r} is no whole number from 1 to {most}")
        return value

    def truth(name: str, default: bool) -> bool:
        return bool(config.get(name, default))

    of_bitsandbytes = config.get("quantization_config")
    held = "nf4" if of_bitsandbytes else str(config["quantization_bit"]) if config.get("quantization_bit") else None
    stored = 4 if str(config.get("torch_dtype") or config.get("dtype")).endswith("float32") else 2
    more: dict[str, Any] = {"quantisation": held, "stored": stored}
    hidden = number("hidden_size", default=4096)
    heads = number("num_attention_heads", default=32)
    layers = number("num_layers", "num_hidden_layers", default=28)
    if config.get("model_type") in NATIVE_TYPES:
        layout, head = f"native-{config['model_type']}", number("head_dim", default=128)
        groups, ffn = number("num_key_value_heads", default=2), number("intermediate_size", default=13696)
        vocabulary = number("vocab_size", default=151552)
        layers = number("num_hidden_layers", default=40)
        biases = (truth("attention_bias", False), False)
        return Shape(layout, vocabulary, hidden, layers, heads, groups, head, ffn, biases, **more)
    if family_of_config(dict(config)) == "glm":
        ffn, vocabulary = number("inner_hidden_size", default=16384), number("vocab_size", default=130528)
        if hidden % heads:
            raise ConfigError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
        return Shape("glm", vocabulary, hidden, layers, heads, heads, hidden // heads, ffn, (True, True), **more)
    groups, head = number("multi_query_group_num", default=2), number("kv_channels", default=128)
    ffn = number("ffn_hidden_size", "intermediate_size", default=13696)
    vocabulary = number("padded_vocab_size", "vocab_size", default=65024)
    everywhere = truth("add_bias_linear", False)
    biases = (everywhere or truth("add_qkv_bias", True), everywhere)
    return Shape("glm2", vocabulary, hidden, layers, heads, groups, head, ffn, biases, **more)


def find_shape(name: str) -> Shape:
    """Of a model's folder, or of an official name. Raises ConfigError."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder}: holds no config.json; name a base model's folder")
        return shape_of(read_json(folder / "config.json"))
    known = OFFICIAL.get(folder.name.lower())
    if known is None:
        raise ConfigError(f"{name}: is neither a model's folder nor one of {', '.join(OFFICIAL)}")
    return known
