"""Records to ids and labels, cut to length; nothing is cut or dropped silently."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from glmft.data.formats import Record
from glmft.data.templates import answer_ids, cue_length, prompt_ids, unsupervised_length
from glmft.errors import DataError


@dataclass(frozen=True)
class Example:
    """One row for the model: prompt and answer ids, and how many of the first have no label (-100)."""

    ids: list[int]
    prompt_length: int
    place: str


@dataclass
class EncodingReport:
    """What became of the records."""

    read: int = 0
    kept: int = 0
    cut_prompt: int = 0
    cut_answer: int = 0
    empty_answers: int = 0
    dropped: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0
    lengths: list[int] = field(default_factory=list, repr=False)

    def lines(self) -> list[str]:
        lengths = sorted(self.lengths)
        middle, most = lengths[len(lengths) // 2], lengths[int(len(lengths) * 0.95)]
        return [
            f"data: {self.read} records read, {self.kept} kept, {self.dropped} dropped as too long, "
            f"{self.cut_prompt} prompts and {self.cut_answer} answers cut"
            + (f", {self.empty_answers} answers empty (the end token alone is learned)" if self.empty_answers else ""),
            f"data: {self.tokens} tokens, {self.supervised / self.tokens:.1%} supervised; "
            f"length median {middle}, 95% {most}, longest {self.longest}",
        ]


def encode_prompt(tokenizer: Any, query: str, max_src_len: int) -> tuple[list[int], bool]:
    """Ids of the prompt, at most `max_src_len`, and whether it was cut; a cut keeps the start and the answer's cue."""
    prompt = prompt_ids(tokenizer, query)
    if len(prompt) <= max_src_len:
        return prompt, False
    cue = cue_length(tokenizer, prompt)
    return prompt[: max(0, max_src_len - cue)] + prompt[-cue:], True


def encode_records(
    records: Iterable[Record], tokenizer: Any, max_len: int, max_src_len: int, is_skip: bool = False
) -> tuple[list[Example], EncodingReport]:
    """Encode all records.

    Args:
        max_len: longest row; the end token's place is kept, so answers are cut to `max_len - prompt - 1`.
        max_src_len: longest prompt.
        is_skip: drop what is too long instead of cutting it.

    Raises:
        DataError: nothing is left to train on.
    """
    examples, report = [], EncodingReport()
    for record in records:
        report.read += 1
        prompt, cut_prompt = encode_prompt(tokenizer, record.query, max_src_len)
        answer, room = answer_ids(tokenizer, record.answer), max_len - len(prompt) - 1
        cut_answer = len(answer) > room
        if is_skip and (cut_prompt or cut_answer):
            report.dropped += 1
            continue
        ids = [*prompt, *answer[:room], tokenizer.eos_token_id]
        without_label = unsupervised_length(tokenizer, prompt)
        examples.append(Example(ids, without_label, record.place))
        report.cut_prompt += cut_prompt
        report.cut_answer += cut_answer
        report.empty_answers += not record.answer
        report.supervised += len(ids) - without_label
        report.lengths.append(len(ids))
    if not examples:
        raise DataError(f"all {report.read} records are longer than --max_len {max_len} or --max_src_len {max_src_len}")
    report.kept, report.tokens, report.longest = len(examples), sum(report.lengths), max(report.lengths)
    return examples, report
