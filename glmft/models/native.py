"""GLM-4 in transformers' own layout (`model_type` glm and glm4): its models as they are, under our loss head.

Layers, names and files are transformers'. What is added: logits at supervised positions only, and virtual tokens. Their
keys and values reach the layers through the interface for attention functions: no attention code is touched, and
caches, masks and packing stay as they are.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmft.errors import ConfigError
from glmft.models.attention import eager_attention, mask_with_prefix, with_prefix
from glmft.models.causal_lm import CausalLM
from glmft.models.documents import Documents, attend_documents
from glmft.models.head import OutputLayer
from glmft.models.nf4 import Quantisable
from glmft.models.prefix import VirtualTokens
from glmft.models.quantised import KeepsIntegers, replace_linear_layers

PREFIXED = "prefixed_"
BACKENDS = ("sdpa", "eager")  # that take virtual tokens


class NativeConfig(Quantisable):
    """A part of a configuration: what the tuners ask of it, by the names of transformers' GLM configurations."""

    family: ClassVar[str] = "glm4"
    rope_line: ClassVar[None] = None
    pre_seq_len = None
    prefix_projection = False
    prefix_hidden_size = None
    prompt_seq_len = None
    prompt_encoder = "none"
    prompt_hidden_size = None

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads of each, and the size of one."""
        return self.num_hidden_layers, self.num_key_value_heads, self.head_dim

    @property
    def prefix_embedding_size(self) -> int:
        """Width of a projected prefix's embedding."""
        return self.hidden_size


class NativeDecoder(KeepsIntegers, VirtualTokens):
    """A part of one of transformers' GLM models."""

    config: Any
    layers: nn.ModuleList

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self.layers

    @property
    def last_norm(self) -> nn.Module:
        """The final norm."""
        return self.norm

    def add_prefix_encoder(self) -> None:
        super().add_prefix_encoder()
        use_prefixed_attention(self.config)

    def add_prompt_encoder(self) -> None:
        super().add_prompt_encoder()
        use_prefixed_attention(self.config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """See `CausalLM.forward`."""
        if use_cache is None:  # with a cache, transformers does not look for packed documents in the positions
            use_cache = self.config.use_cache and not self.training and position_ids is None
        is_plain = attention_mask is None and position_ids is None and past_key_values is None and not use_cache
        words = input_ids if inputs_embeds is None else inputs_embeds
        documents = Documents.of(self.config, kwargs.pop("documents", None), kwargs.pop("contexts", None))
        prefix = self.prefix(
            self.dtype_of_words, past_key_values, len(documents.lengths) if documents else words.shape[0]
        )
        if self.config.prompt_seq_len:  # the virtual tokens take the first positions
            if position_ids is None:
                seen = 0 if past_key_values is None else past_key_values.get_seq_length()
                device = self.embed_tokens.weight.device
                position_ids = torch.arange(seen, seen + words.shape[1], device=device)[None]
            position_ids = position_ids + self.config.prompt_seq_len
        if prefix is not None:
            kwargs["prefix"] = prefix
        if documents or (is_plain and self.config._attn_implementation.endswith("sdpa")):
            attention_mask = kwargs_of(documents, self.config, kwargs, words.device)
        with only_layers(self, kwargs.pop("layers", None)):
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )

    @property
    def dtype_of_words(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def prompt_keys_values(self, dtype: torch.dtype) -> Tensor:
        """Send the virtual tokens through the layers, as `VirtualTokens` does."""
        cache = DynamicCache(config=self.config)
        checkpointing = [layer.gradient_checkpointing for layer in self.layers]
        for layer in self.layers:
            layer.gradient_checkpointing = False
        super().forward(inputs_embeds=self.prompt_encoder().to(dtype)[None], past_key_values=cache, use_cache=True)
        for layer, before in zip(self.layers, checkpointing, strict=True):
            layer.gradient_checkpointing = before
        return torch.stack([torch.cat((layer.keys, layer.values)) for layer in cache.layers])


class NativeCausalLM(KeepsIntegers, CausalLM):
    """A part of one of transformers' GLM models with a language-model head."""

    decoder: ClassVar[type[PreTrainedModel]]
    skips_unneeded = False
    resize_token_embeddings = PreTrainedModel.resize_token_embeddings

    def __init__(self, config: Any):
        PreTrainedModel.__init__(self, config)
        self.model = self.decoder(config)
        replace_linear_layers(self.model.layers, config.quantization_bit)
        self.vocab_size = config.vocab_size
        self.lm_head = OutputLayer(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


@contextlib.contextmanager
def only_layers(decoder: NativeDecoder, layers: range | None) -> Iterator[None]:
    """Inside, a forward pass runs these layers alone, and the final norm only behind the last; None: all."""
    whole, norm = decoder.layers, decoder.norm
    if layers is not None:
        decoder.layers = whole[layers.start : layers.stop]
        decoder.norm = norm if layers.stop == len(whole) else nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = whole, norm


def unsupported(train_type: str, attn_implementation: str, use_reentrant: bool) -> list[str]:
    """What these models cannot be trained with, one line each."""
    if train_type not in ("ptuning", "prompt"):
        return []
    problems = []
    if attn_implementation not in BACKENDS:
        problems.append(no_virtual_tokens(attn_implementation))
    if use_reentrant:  # it gives no gradient through keyword arguments, as their layers take them
        problems.append(f"--use_reentrant: does not go with --train_type {train_type} in transformers' own models")
    return problems


def no_virtual_tokens(backend: str) -> str:
    return (
        f"--attn_implementation {backend}: takes no virtual tokens in transformers' own models; "
        f"give {' or '.join(BACKENDS)}"
    )


def use_prefixed_attention(config: Any) -> None:
    """Have the layers call `prefixed_attention` around the backend that they have. Raises ConfigError for some."""
    backend = config._attn_implementation
    if backend.startswith(PREFIXED):
        return
    if backend not in BACKENDS:
        raise ConfigError(no_virtual_tokens(backend))
    name = PREFIXED + backend
    ALL_ATTENTION_FUNCTIONS.register(name, prefixed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend])
    config._attn_implementation = name


def kwargs_of(documents: Documents | None, config: Any, kwargs: dict[str, Any], device: torch.device) -> Tensor | None:
    """Put into `kwargs` what has the layers keep documents apart; the mask to call transformers' model with.

    One of four dimensions is taken as it is: no other is made from the values of the positions.

    Args:
        documents: None: plain causal attention of whole rows.
    """
    if "flash" in config._attn_implementation:
        kwargs.update(documents.boundaries(device))
        return None
    use_prefixed_attention(config)
    kwargs["is_unmasked"], kwargs["documents"] = True, documents
    return torch.empty(1, 1, 1, 1, device=device)


def prefixed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix: Tensor | None = None,
    documents: Documents | None = None,
    is_unmasked: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The backend of `BACKENDS` with keys and values of virtual tokens in front.

    Args:
        query: [b, heads, s, d]; key, value: [b, groups, k, d].
        prefix: [layers, 2, 1 or b, groups, P, d], or None.
        documents: in place of a mask.
        is_unmasked: whether the mask is none, and stands there that none be made.

    Returns:
        output [b, s, heads, d] and, if eager, the attention probabilities.
    """
    length = query.shape[2]
    name = module.config._attn_implementation.removeprefix(PREFIXED)
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
    own = None if prefix is None else prefix[module.layer_idx]
    attention_mask = None if is_unmasked else attention_mask
    if documents:
        return attend_documents(backend, module, query, key, value, documents, own, **kwargs), None
    if own is not None:
        attention_mask = mask_with_prefix(attention_mask, own.shape[-2])
        query, key, value = with_prefix(module.config, query, key, value, own, attention_mask)
    attended, weights = backend(module, query, key, value, attention_mask, **kwargs)
    return attended[:, -length:], weights


# ------------------------------------------------------------------------- under the names of transformers' classes


class GlmConfig(NativeConfig, transformers.GlmConfig):
    """glm-4-9b-chat-hf."""


class Glm4Config(NativeConfig, transformers.Glm4Config):
    """GLM-4-0414 and GLM-Z1, which have a norm behind attention and feed-forward, too."""


class GlmModel(NativeDecoder, transformers.GlmModel):
    pass


class Glm4Model(NativeDecoder, transformers.Glm4Model):
    pass


class GlmForCausalLM(NativeCausalLM, transformers.GlmForCausalLM):
    config_class = GlmConfig
    decoder = GlmModel


class Glm4ForCausalLM(NativeCausalLM, transformers.Glm4ForCausalLM):
    config_class = Glm4Config
    decoder = Glm4Model
