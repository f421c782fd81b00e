"""The language-model part that the families share: one forward pass from ids to loss or logits."""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from glmft.models.head import supervised_nll


class CausalLM:
    """A part of a `PreTrainedModel` whose base model gives hidden states, and that has output embeddings."""

    accepts_loss_kwargs = True

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Refused: ids past the vocabulary are fixed by the tokenizer, and the official code could not load it."""
        raise NotImplementedError(
            f"the vocabulary of {self.config.vocab_size} ids is fixed: special tokens have fixed ids behind the "
            "sentencepiece model, and the official code could not load another size"
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        loss_positions: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """One pass.

        Args:
            input_ids: [b, s].
            attention_mask: [b, past + s], 1 = real, 0 = padding; None if no padding stands left of a real token.
            position_ids: [b, s], or [b, 2, s] for ChatGLM-6B; derived from the other arguments if None. Positions that
                start again mark packed documents, kept apart.
            inputs_embeds: [b, s, h] in place of input_ids.
            labels: [b, s], unshifted, -100 = not supervised.
            output_hidden_states: L + 1 entries [b, s, h]; the last is before the final norm (ChatGLM-6B: after it).
            logits_to_keep: logits of the last n tokens only; 0 = all.
            return_logits: whether to compute logits; by default exactly when there are no labels.
            loss_positions: [n], flat indices (row * s + column) of the tokens whose successor has a label. Computed
                from `labels` if None, which makes an accelerator wait for the host.
            num_items_in_batch: what the summed loss is divided by; by default the number of supervised tokens.

        Returns:
            `loss` (if labels are given): negative log likelihood in nats; `logits` [b, s, vocabulary].
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        out = self.base_model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        hidden, head = out.last_hidden_state, self.get_output_embeddings()
        loss = logits = None
        if labels is not None:
            loss = supervised_nll(hidden, labels, head, loss_positions, num_items_in_batch)
        if labels is None if return_logits is None else return_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = head(hidden[:, kept])
        result = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )
        return result.to_tuple() if return_dict is False else result
