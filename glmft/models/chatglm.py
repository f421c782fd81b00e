"""ChatGLM-6B: LayerNorm with a scaled residual after it, GELU, 2-D rotary positions, a context seen in both directions.

Parameter names are the official ones, so official checkpoints load and what is saved loads in the official code.
Shapes: b rows, s tokens, P prefix tokens, h hidden size, d head size, L layers.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput

from glmft.models.attention import attend
from glmft.models.causal_lm import CausalLM
from glmft.models.configuration import ChatGLM6BConfig
from glmft.models.decoder import Decoder, only
from glmft.models.documents import Documents
from glmft.models.head import OutputLayer
from glmft.models.positions import continued, two_dimensional_positions, visibility
from glmft.models.quantised import KeepsIntegers, replace_linear_layers

# The official code never passes the number of layers on: every ChatGLM-6B was trained with that of 28.
RESIDUAL_SCALE = math.sqrt(2 * 28)


class RotaryPositions(nn.Module):
    """Rotary frequencies (Su et al., 2021) for half of a head, rounded to float16 as the official checkpoints are."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.size = head_dim // 2
        # Official checkpoints carry this tensor and the official code ignores its values: it stays for the round trip.
        self.register_buffer("inv_freq", self.frequencies())

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """[d / 4] in float16."""
        powers = torch.arange(0, self.size, 2, dtype=torch.float32, device=device) / self.size
        return (1.0 / 10000.0**powers).half()


def rotary_tables(frequencies: Tensor, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """position_ids [b, 2, s] -> cos, sin [b, 1, s, 2, d / 4]: one angle for each dimension and pair, in float32."""
    angles = position_ids.transpose(1, 2).float()[:, None, :, :, None] * frequencies.float()
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first half of each head by the place and the second by the block; x [b, heads, s, d].

    In each half, number j and number j + d / 4 form a pair.
    """
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # [b, heads, s, 2, d / 4]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2).flatten(-3)


class SelfAttention(nn.Module):
    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.heads
        self.scaling = self.head_dim**-0.5
        self.rotary_emb = RotaryPositions(self.head_dim)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Any,
        rotary: tuple[Tensor, Tensor],
        prefix: Tensor | None,
        past_key_values: Cache | None,
        needed: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden [b, s, h] -> output [b, s, h] and, if eager, the attention probabilities.

        prefix: [2, 1 or b, heads, P, d].
        """
        query, key, value = self.projected(hidden, rotary)
        attended, weights = attend(self, query, key, value, attention_mask, prefix, past_key_values, **kwargs)
        return self.dense(only(attended, needed)), weights

    def projected(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [b, heads, s, d], turned."""
        fused = self.query_key_value(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b, heads, s, 3 d]
        query, key, value = fused.chunk(3, dim=-1)
        return apply_rotary(query, *rotary), apply_rotary(key, *rotary), value


class MLP(nn.Module):
    """GELU in its tanh form (Hendrycks and Gimpel, 2016)."""

    def __init__(self, config: ChatGLM6BConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden), approximate="tanh"))


class Block(GradientCheckpointingLayer):
    """One layer: x = norm(h); h = scale x + attention(x); y = norm(h); h = scale y + mlp(y)."""

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Any,
        rotary: tuple[Tensor, Tensor],
        prefix: Tensor | None,
        output_attentions: bool = False,
        needed: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        normed = self.input_layernorm(hidden)
        attended, weights = self.attention(normed, attention_mask, rotary, prefix, needed=needed, **kwargs)
        hidden = self.fed_forward(only(normed, needed), attended)
        return (hidden, weights) if output_attentions else hidden

    def fed_forward(self, normed: Tensor, attended: Tensor) -> Tensor:
        """What is behind attention; all [b, s, h]."""
        normed = self.post_attention_layernorm(RESIDUAL_SCALE * normed + attended)
        return RESIDUAL_SCALE * normed + self.mlp(normed)


class ChatGLM6BPreTrainedModel(KeepsIntegers, PreTrainedModel):
    config_class = ChatGLM6BConfig
    config: ChatGLM6BConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False  # positions are read off the ids, which are checked on the host

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryPositions):
            init.copy_(module.inv_freq, module.frequencies(module.inv_freq.device))


class ChatGLM6BModel(Decoder, ChatGLM6BPreTrainedModel):
    """Embeddings, layers and, where the configuration asks for them, virtual tokens."""

    last_state_is_normed = True

    def __init__(self, config: ChatGLM6BConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        replace_linear_layers(self.blocks, config.quantization_bit)
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.add_virtual_tokens()
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    @property
    def last_norm(self) -> nn.Module:
        return self.final_layernorm

    def rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """position_ids [b, 2, s] -> cos, sin [b, 1, s, 2, d / 4]."""
        frequencies = self.layers[0].attention.rotary_emb.frequencies(position_ids.device)
        return rotary_tables(frequencies, position_ids, dtype)

    def prompt_geometry(self, hidden: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
        places = torch.arange(hidden.shape[1], device=hidden.device)
        positions = torch.stack((places, torch.zeros_like(places)))[None]
        length = [hidden.shape[1]]
        mask = Documents.of(self.config, length, length) or visibility(self.config, hidden, None, None, positions)
        return mask, self.rotary(positions, hidden.dtype)

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value

    def positions(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, past_key_values: Cache | None
    ) -> Tensor:
        """[b, 2, s]. Raises ValueError where the ids cannot tell them."""
        if input_ids is None:
            raise unknown_positions("inputs_embeds")
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise unknown_positions("past_key_values")
        two_dimensional = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        return two_dimensional_positions(self.config, input_ids, two_dimensional)

    def geometry(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
        documents: Documents | None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        if position_ids is None:
            position_ids = self.positions(input_ids, attention_mask, past_key_values)
        if position_ids.dim() != 3:
            raise ValueError(f"position_ids {list(position_ids.shape)}: ChatGLM-6B's are [b, 2, s], place and block")
        mask = documents or visibility(self.config, hidden, attention_mask, past_key_values, position_ids)
        if self.config.prompt_seq_len:
            place, block = position_ids.unbind(1)
            position_ids = torch.stack((place + self.config.prompt_seq_len, block), dim=1)
        return mask, self.rotary(position_ids, hidden.dtype)


def unknown_positions(beside: str) -> ValueError:
    return ValueError(f"give position_ids [b, 2, s] beside {beside}; ChatGLM-6B reads positions off the ids")


class ChatGLM6BForConditionalGeneration(CausalLM, ChatGLM6BPreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its language-model head, which is the embedding matrix."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLM6BConfig):
        super().__init__(config)
        self.transformer = ChatGLM6BModel(config)
        self.lm_head = OutputLayer(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; a tied `lm_head.weight` stands beside its twin, as officially."""
        state = dict(kwargs.pop("state_dict", None) or self.state_dict())
        embedding = state.get("transformer.word_embeddings.weight")
        if self.config.tie_word_embeddings and embedding is not None:
            state["lm_head.weight"] = embedding.detach().clone()
        super().save_pretrained(save_directory, state_dict=state, **kwargs)

    # Positions of two dimensions: `generate` makes, repeats and extends those of one.

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        ids = model_kwargs.get("input_ids", inputs_tensor)
        if ids.is_floating_point() or not ids.shape[1]:
            raise unknown_positions("inputs_embeds")
        return two_dimensional_positions(self.config, ids, model_kwargs.get("attention_mask"))

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        positions = kwargs.pop("position_ids", None)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        if positions is not None:
            kwargs["position_ids"] = positions.repeat_interleave(expand_size, dim=0)
        return input_ids, kwargs

    def _update_model_kwargs_for_generation(
        self,
        outputs: ModelOutput,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        positions = model_kwargs.pop("position_ids", None)
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        if positions is not None:
            model_kwargs["position_ids"] = continued(positions, num_new_tokens)
        return model_kwargs

    def create_masks_for_generate(self, *, attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """Left to `forward`, which makes the same mask for every kind of cache."""
        return attention_mask
