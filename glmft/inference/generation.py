"""Answer many prompts: batches of similar length, padded on the left; greedy, with beams, or drawn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmft.data.dataset import lengths_of
from glmft.data.encode import encode_prompt
from glmft.data.templates import answer_text
from glmft.inference.sampling import own_draws, sampling
from glmft.models.chat import messages_of, text_of
from glmft.settings.answers import DecodingSettings, PredictConfig
from glmft.settings.config import DataSettings

NOT_RECORDED = 2049  # longest row where nothing tells how a model was trained


@dataclass
class AnswerReport:
    """What was cut of prompts and answers.

    Args:
        longest: the longest prompt as it was given to the model, in tokens.
        unfinished: answers that `max_new_tokens` ended.
    """

    prompts: int = 0
    cut: int = 0
    longest: int = 0
    unfinished: int = 0

    def take_prompt(self, prompt: Sequence[int], was_cut: bool) -> None:
        self.prompts += 1
        self.cut += was_cut
        self.longest = max(self.longest, len(prompt))

    def lines(self, config: PredictConfig, built_for: int | None) -> list[str]:
        """A warning for each way in which something was cut.

        Args:
            built_for: tokens that the model was built for, as its config.json says.
        """
        limit = next(name for name in ("max_source_length", "max_src_len", "max_len") if getattr(config, name))
        most, lines = self.longest + config.max_new_tokens, []
        if self.cut:
            lines.append(
                f"{self.cut} of {self.prompts} prompts were cut to {self.longest} tokens; a larger --{limit} "
                f"than {getattr(config, limit)} keeps more"
            )
        if self.unfinished:
            lines.append(
                f"{self.unfinished} of {self.prompts} answers were ended by --max_new_tokens {config.max_new_tokens}"
            )
        if built_for and most > built_for:
            lines.append(
                f"prompt and answer may take {most} tokens, but the model was built for {built_for} (seq_length)"
            )
        return [f"warning: {line}" for line in lines]


def answer(
    model: Any,
    tokenizer: Any,
    queries: Sequence[str | Sequence[dict[str, Any]]],
    *,
    batch_size: int = 16,
    max_tokens_per_batch: int | None = None,
    max_src_len: int | None = None,
    template: str | None = None,
    source_prefix: str | None = None,
    report: AnswerReport | None = None,
    advance: Callable[[int], Any] = lambda count: None,
    **decoding: Any,
) -> list[Any]:
    """The model's answer to each query, in the order of the queries.

    A text; of ChatGLM3 and GLM-4, where it has metadata, what `chat` gives: the call of a tool by name and parameters.

    Args:
        queries: questions, or conversations of messages with `role` and `content`.
        batch_size: prompts generated together.
        max_tokens_per_batch: in place of `batch_size`, as in `batches`.
        max_src_len: longest prompt, in tokens; longer ones are cut as in training. None: as the model was trained, else
            2048.
        template: None: as the model was trained, else `default`.
        source_prefix: what stands before every question that does not begin with it. None: as the model was trained.
        report: takes note of what was cut.
        advance: called with the number of answers finished since its last call.
        decoding: fields of `DecodingSettings`: `max_new_tokens`, `num_beams`, `do_sample`, …
    """
    settings, report = DecodingSettings(**decoding), report or AnswerReport()
    trained = getattr(model, "trained_with", None) or DataSettings(max_len=NOT_RECORDED)
    longest = max_src_len or lengths_of(trained, tokenizer.family).longest_prompt
    prefix = trained.source_prefix if source_prefix is None else source_prefix
    template, prompts = template or trained.template, []
    for query in queries:
        asked = prefix + query if isinstance(query, str) and not query.startswith(prefix) else query
        prompt, was_cut = encode_prompt(tokenizer, asked, longest, template)
        report.take_prompt(prompt, was_cut)
        prompts.append(prompt)
    groups = batches([len(prompt) for prompt in prompts], settings, batch_size, max_tokens_per_batch)

    def read(i: int, ids: list[int]) -> Any:
        if not tokenizer.has_roles or template != "default":
            return answer_text(tokenizer, ids)
        messages = [] if isinstance(queries[i], str) else queries[i]
        return messages_of(text_of(tokenizer, ids), messages, as_json=tokenizer.family == "glm4")[0]

    answers = answer_batches(model, tokenizer, prompts, groups, settings, report, advance=advance, read=read)
    return [answers[i] for i in range(len(prompts))]


def batches(
    lengths: Sequence[int], settings: DecodingSettings, batch_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Numbers of prompts that are generated together, the longest first: what needs most memory shows at once.

    Args:
        lengths: tokens of the prompts.
        max_tokens: in place of `batch_size`: prompts, padded, and room for their answers, for every beam, take at most
            this many tokens; a prompt that is too long for that goes alone.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    groups = []
    while order:
        size = batch_size
        if max_tokens is not None:
            size = max(1, max_tokens // ((lengths[order[0]] + settings.max_new_tokens) * settings.num_beams))
        groups.append(order[:size])
        order = order[size:]
    return groups


def answer_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    groups: Iterable[list[int]],
    settings: DecodingSettings,
    report: AnswerReport,
    first: int = 0,
    advance: Callable[[int], Any] = lambda count: None,
    read: Callable[[int, list[int]], Any] | None = None,
) -> dict[int, Any]:
    """Answers by the number of their prompt.

    Args:
        prompts: ids.
        groups: as `batches` gives them.
        report: takes note of answers that have no end.
        first: the record that the first prompt belongs to.
        advance: called with the number of answers of each batch.
        read: makes an answer of a prompt's number and generated ids; None: their text.
    """
    answers = {}
    for group in groups:
        numbers = [first + i for i in group]
        generated = generate(model, tokenizer, [prompts[i] for i in group], settings, numbers)
        for i, ids in zip(group, generated, strict=True):
            answers[i] = read(i, ids) if read else answer_text(tokenizer, ids)
            report.unfinished += not set(tokenizer.stop_ids) & set(ids)
        advance(len(group))
    return answers


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    settings: DecodingSettings,
    numbers: Sequence[int | str] | None = None,
    synced: bool = False,
    **watching: Any,
) -> list[list[int]]:
    """Continuations of prompts given as ids, without them.

    Args:
        numbers: of the records, by which they have their own random numbers; none: 0, 1, …
        synced: go on with empty passes until every rank has finished, as ZeRO-3 needs.
        watching: of transformers, without beams: a `streamer`, and `stopping_criteria`.
    """
    batch = tokenizer.pad({"input_ids": prompts}, padding=True, return_tensors="pt").to(model.device)
    numbers = range(len(prompts)) if numbers is None else numbers
    ids = model.generate(
        **batch,
        **choice_of_tokens(settings, tokenizer.family, numbers),
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        repetition_penalty=float(settings.repetition_penalty),
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.pad_token_id,
        synced_gpus=synced,
        **watching,
    )
    return ids[:, batch["input_ids"].shape[1] :].tolist()


def choice_of_tokens(settings: DecodingSettings, family: str, numbers: Sequence[int | str]) -> dict[str, Any]:
    """What `model.generate` is told about the choice among the next tokens."""
    if not settings.do_sample:
        return {"do_sample": False}
    if settings.num_beams == 1:
        return {"do_sample": False, "logits_processor": own_draws(settings, family, numbers)}
    # Beams are drawn by transformers, from the generator of the process: their draws hang on the batch.
    torch.manual_seed(settings.seed + min(numbers))
    return {"do_sample": True, **sampling(settings, family)}
