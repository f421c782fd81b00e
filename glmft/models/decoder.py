"""The way of hidden states through the layers, which the families share."""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from glmft.models.attention import mask_with_prefix
from glmft.models.causal_lm import as_asked, refuse_unknown
from glmft.models.documents import Documents
from glmft.models.prefix import VirtualTokens


class Decoder(VirtualTokens):
    """A part of a `PreTrainedModel` that names its layers: `blocks`, `last_norm` and `geometry`.

    Args of a forward pass, beside those of `CausalLM`:
        layers: a range of those that run: what comes into the first stands in `inputs_embeds`; what comes out of the
            last is not normed, unless it is the model's last.
        needed_positions: [n], flat indices (row * s + column) of the tokens whose last hidden states are wanted: these
            alone come back, [1, n, h], and the last layer leaves the others out behind its attention.
    """

    last_state_is_normed = False  # whether the last of the hidden states is the one after the final norm

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.Module:
        """The final norm."""
        raise NotImplementedError

    def geometry(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
        documents: Documents | None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The backend's mask, or `documents` in its place, and the rotary tables.

        hidden [b, s, h] is there for its shape, dtype and device.
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        needed_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """See `CausalLM.forward`, and the class."""
        refuse_unknown(kwargs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        attentions = attentions_of(self.config, output_attentions)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        documents = Documents.of(self.config, kwargs.pop("documents", None), kwargs.pop("contexts", None))
        # Before a cache is made: with one, transformers no longer looks for packed documents in the positions.
        layers = kwargs.pop("layers", range(len(self.blocks)))  # what comes into upper ones may be widened by norms
        like = hidden.to(self.get_input_embeddings().weight.dtype) if layers.start else hidden
        mask, rotary = self.geometry(like, input_ids, attention_mask, position_ids, past_key_values, documents)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        prefix = self.prefix(hidden.dtype, past_key_values, len(documents.lengths) if documents else len(hidden))
        if prefix is not None:
            mask = mask_with_prefix(mask, prefix.shape[-2])
        states = (hidden,)
        for i in layers:
            hidden = self.blocks[i](
                hidden,
                mask,
                rotary,
                None if prefix is None else prefix[i],
                past_key_values=past_key_values,
                output_attentions=attentions is not None,
                needed=needed_positions if i == len(self.blocks) - 1 else None,
                **kwargs,
            )
            if attentions is not None:
                hidden, weights = hidden
                attentions += (weights,)
            states += (hidden,) if output_hidden_states else ()
        normed = self.last_norm(hidden) if layers.stop == len(self.blocks) else hidden
        if self.last_state_is_normed:
            states = (*states[:-1], normed)
        result = BaseModelOutputWithPast(
            last_hidden_state=normed,
            past_key_values=past_key_values,
            hidden_states=states if output_hidden_states else None,
            attentions=attentions,
        )
        return as_asked(result, self.config, return_dict)


def only(hidden: Tensor, needed: Tensor | None) -> Tensor:
    """[b, s, h] -> [1, n, h]: the tokens at flat indices [n]; None: all, as they are."""
    return hidden if needed is None else hidden.flatten(0, 1).index_select(0, needed)[None]


def attentions_of(config: Any, asked: bool | None) -> tuple | None:
    """() where attention probabilities are asked for, else None. Raises ValueError for a backend that has none."""
    if not (config.output_attentions if asked is None else asked):
        return None
    if config._attn_implementation != "eager":
        raise ValueError(
            f"output_attentions: {config._attn_implementation} attention gives no probabilities; load the model with "
            'attn_implementation="eager"'
        )
    return ()
