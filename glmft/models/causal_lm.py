"""The language-model part that the families share: one forward pass from ids to loss or logits."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput

from glmft.files import share
from glmft.models.chat import Chat
from glmft.models.head import supervised_nll

# What is handed down: rows of several documents, as transformers' collators describe them and as ours does, to the
# attention functions; and which layers run.
PASSED_ON = (
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "cache_position"),
    *("documents", "contexts", "layers"),
)


def refuse_unknown(given: Iterable[str]) -> None:
    """Raises TypeError for keyword arguments of a forward pass that nothing would read."""
    unknown = sorted(set(given) - set(PASSED_ON))
    if unknown:
        raise TypeError(f"forward() got unexpected keyword arguments: {', '.join(unknown)}")


class CausalLM(Chat):
    """A part of a `PreTrainedModel` whose base model gives hidden states, and that has output embeddings.

    Args of a forward pass:
        input_ids: [b, s].
        attention_mask: [b, past + s], 1 = real, 0 = padding; None if no padding stands left of a real token.
        position_ids: [b, s], or [b, 2, s] for ChatGLM-6B; derived from the other arguments if None. Positions that
            start again mark packed documents, kept apart.
        inputs_embeds: [b, s, h] in place of input_ids.
        labels: [b, s], unshifted, -100 = not supervised.
        output_attentions: L entries [b, heads, s, past + s], the probabilities; eager attention only.
        output_hidden_states: L + 1 entries [b, s, h]; the last is before the final norm (ChatGLM-6B: after it).
        logits_to_keep: logits of the last n tokens only; 0 = all.
        return_logits: whether to compute logits; by default unless a model in training has labels.
        loss_positions: [n], flat indices (row * s + column) of the tokens whose successor has a label. Computed
            from `labels` if None, which makes an accelerator wait for the host.
        num_items_in_batch: what the summed loss is divided by; by default the number of supervised tokens.
        shift_labels: [b, s], what each token predicts, in place of `labels`: sequence parallel training cuts rows,
            so that a token's successor may be on another rank.
        documents: lengths of the documents that stand one behind the other in a batch of one row, beside position_ids
            that start again with each; with `contexts`, how many tokens of each see one another in both directions.
        layers: a range of those that run, up to the last; what comes into the first of them stands in `inputs_embeds`.
        kwargs: `PASSED_ON`.

    Its result:
        `loss` (if labels are given): negative log likelihood in nats; `logits` [b, s, vocabulary].
    """

    accepts_loss_kwargs = True
    skips_unneeded = True  # whether the last layer can leave out positions that no loss is asked of

    def load_custom_generate(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a folder's own `generate` is code, which is not executed, trusted or not."""
        raise OSError("glmft executes no code of a model's folder; write a subclass, or give generate a function")

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The model: it has no encoder, though its layers go by that name."""
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; whoever may read the folder may read its weights."""
        super().save_pretrained(save_directory, **kwargs)
        for file in Path(save_directory).glob("*.safetensors"):
            share(file)

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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        loss_positions: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """One pass, see the class. Raises TypeError for keyword arguments that nothing reads."""
        shift_labels = kwargs.pop("shift_labels", None)  # named above, the Trainer would ask every batch for it
        refuse_unknown(kwargs)
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        supervised = labels is not None or shift_labels is not None
        wants_logits = return_logits or (return_logits is None and not (supervised and self.training))
        skips = self.skips_unneeded and shift_labels is None and not (wants_logits or output_hidden_states)
        if skips and labels is not None and loss_positions is not None:
            kwargs["needed_positions"] = loss_positions
        out = self.base_model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        hidden, head = out.last_hidden_state, self.get_output_embeddings()
        loss = logits = None
        if supervised:
            skipped = "needed_positions" in kwargs
            loss = supervised_nll(hidden, labels, head, loss_positions, num_items_in_batch, shift_labels, skipped)
        if wants_logits:
            logits = head(
                hidden[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return as_asked(result, self.config, return_dict)


def as_asked(result: ModelOutput, config: Any, return_dict: bool | None) -> ModelOutput | tuple:
    """A tuple where the call, or else the configuration, wants no dict."""
    wants_dict = config.return_dict if return_dict is None else return_dict
    return result if wants_dict else result.to_tuple()
