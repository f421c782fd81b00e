"""ChatGLM2-6B and ChatGLM3-6B: RMSNorm, SwiGLU, multi-query groups, rotary positions on half of each head.

Parameter names are the official ones, so official checkpoints load and what is saved loads in the official code.
Shapes: b rows, s tokens, P prefix tokens, h hidden size, d head size, g key/value groups, L layers.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from glmft.models.attention import attend
from glmft.models.causal_lm import CausalLM
from glmft.models.configuration import ChatGLM2Config
from glmft.models.decoder import Decoder, only
from glmft.models.documents import Documents
from glmft.models.elementwise import apply_rotary, rms_norm, swiglu
from glmft.models.head import OutputLayer
from glmft.models.quantised import KeepsIntegers, replace_linear_layers
from glmft.models.stops import stop_ids


class RMSNorm(nn.Module):
    """h / sqrt(mean(h^2) + eps) * weight (Zhang and Sennrich, 2019), computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight, self.eps)


class RotaryPositions(nn.Module):
    """Rotary tables (Su et al., 2021) for the first half of each head, one angle per neighbouring pair of numbers."""

    def __init__(self, config: ChatGLM2Config):
        super().__init__()
        self.config = config
        # Official checkpoints carry this tensor and the official code ignores its values: it stays for the round trip.
        self.register_buffer("inv_freq", self.frequencies())

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """[d / 4] in float32."""
        size = self.config.kv_channels // 2
        base = 10000.0 * (1 if self.config.rope_scales_positions else self.config.rope_ratio)
        return 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """position_ids [b, s] -> cos, sin [b, 1, s, d / 4], computed in float32 whatever the model's dtype."""
        positions = position_ids.float()
        if self.config.rope_scales_positions:
            positions = positions / self.config.rope_ratio
        angles = positions[:, None, :, None] * self.frequencies(position_ids.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class SelfAttention(nn.Module):
    """Query heads share `multi_query_group_num` key/value groups; neighbouring heads share a group."""

    is_causal = True

    def __init__(self, config: ChatGLM2Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads, self.groups, self.head_dim = (
            config.num_attention_heads,
            config.multi_query_group_num,
            config.kv_channels,
        )
        self.num_key_value_groups = self.heads // self.groups
        self.scaling = self.head_dim**-0.5
        self.query_key_value = nn.Linear(
            config.hidden_size,
            (self.heads + 2 * self.groups) * self.head_dim,
            bias=config.add_bias_linear or config.add_qkv_bias,
        )
        self.dense = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=config.add_bias_linear)

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

        prefix: [2, 1 or b, g, P, d].
        """
        query, key, value = self.projected(hidden, rotary)
        attended, weights = attend(self, query, key, value, attention_mask, prefix, past_key_values, **kwargs)
        return self.dense(only(attended, needed)), weights

    def projected(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Query [b, heads, s, d], key and value [b, g, s, d], turned."""
        fused = self.query_key_value(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        turning, value = fused.split([self.heads + self.groups, self.groups], dim=1)
        query, key = apply_rotary(turning, *rotary).split([self.heads, self.groups], dim=1)
        return query, key, value


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020): silu(first half) * second half of one projection."""

    def __init__(self, config: ChatGLM2Config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=config.add_bias_linear)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=config.add_bias_linear)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dense_4h_to_h(swiglu(self.dense_h_to_4h(hidden)))


class Block(GradientCheckpointingLayer):
    """One layer: h += attention(norm(h)); h += mlp(norm(h))."""

    def __init__(self, config: ChatGLM2Config, layer_idx: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
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
        attended, weights = self.self_attention(normed, attention_mask, rotary, prefix, needed=needed, **kwargs)
        hidden = self.fed_forward(only(hidden, needed), attended)
        return (hidden, weights) if output_attentions else hidden

    def fed_forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """What is behind attention; all [b, s, h]."""
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Embedding(nn.Module):
    def __init__(self, config: ChatGLM2Config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)


class Encoder(nn.Module):
    def __init__(self, config: ChatGLM2Config):
        super().__init__()
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)


class ChatGLM2PreTrainedModel(KeepsIntegers, PreTrainedModel):
    config_class = ChatGLM2Config
    config: ChatGLM2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryPositions):
            init.copy_(module.inv_freq, module.frequencies(module.inv_freq.device))


class ChatGLM2Model(Decoder, ChatGLM2PreTrainedModel):
    """Embeddings, layers and, where the configuration asks for them, virtual tokens."""

    def __init__(self, config: ChatGLM2Config):
        super().__init__(config)
        self.embedding = Embedding(config)
        self.rotary_pos_emb = RotaryPositions(config)
        self.encoder = Encoder(config)
        replace_linear_layers(self.blocks, config.quantization_bit)
        self.output_layer = OutputLayer(config.hidden_size, config.padded_vocab_size, bias=config.add_bias_linear)
        self.add_virtual_tokens()
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    @property
    def last_norm(self) -> nn.Module:
        return self.encoder.final_layernorm

    def geometry(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
        documents: Documents | None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        mask = documents or create_causal_mask(self.config, hidden, attention_mask, past_key_values, position_ids)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + seen)[None]
        return mask, self.rotary_pos_emb(position_ids + (self.config.prompt_seq_len or 0), hidden.dtype)

    def prompt_geometry(self, hidden: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return create_causal_mask(self.config, hidden, None, None), self.rotary_pos_emb(positions, hidden.dtype)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding.word_embeddings = value


class ChatGLM2ForConditionalGeneration(CausalLM, ChatGLM2PreTrainedModel, GenerationMixin):
    """ChatGLM2, ChatGLM3 or GLM-4 with its language-model head."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Also has `generate` stop at all tokens that end an answer."""
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        stops = stop_ids(model.config, folder) if folder is not None else None
        if stops and isinstance(model.generation_config.eos_token_id, int | None):
            model.generation_config.eos_token_id = stops
            model.generation_config._from_model_config = False  # else it would be made from config.json again
        return loaded

    def __init__(self, config: ChatGLM2Config):
        super().__init__(config)
        self.transformer = ChatGLM2Model(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.transformer.output_layer = value
