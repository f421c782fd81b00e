"""Conversations to ids and labels, cut to length; nothing is cut or dropped silently."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from glmft.data.formats import Record
from glmft.data.templates import Row, cue_length, extra_lengths, make_row, prompt_ids, targets
from glmft.errors import DataError

Span = tuple[int, int]
IGNORED = -100  # the label of what is not learned


@dataclass(frozen=True)
class Example:
    """One row for the model: its ids, and the spans [first, end) of positions that have a label."""

    ids: list[int]
    spans: tuple[Span, ...]
    place: str

    @property
    def supervised(self) -> int:
        return sum(end - first for first, end in self.spans)


class LazyRows(Sequence[Example]):
    """Rows that come to be when they are asked for, by `row`."""

    def row(self, index: int) -> Example:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.row(i) for i in range(*index.indices(len(self)))]
        return self.row(range(len(self))[index])


@dataclass(frozen=True)
class Lengths:
    """In tokens.

    Args:
        max_len: longest row; the end token's place is kept, so an answer has `max_len - prompt - 1`.
        max_src_len: longest prompt of one question; a dialogue's may fill what its answer leaves of `max_len`.
        max_tgt_len: longest answer; None: what is left.
        is_skip: drop what is too long instead of cutting it.
    """

    max_len: int
    max_src_len: int
    max_tgt_len: int | None = None
    is_skip: bool = False


@dataclass
class EncodingReport:
    """What became of the records."""

    read: int = 0
    kept: int = 0
    cut_prompt: int = 0
    cut_answer: int = 0
    cut_turns: int = 0
    empty_answers: int = 0
    dropped: int = 0
    nothing_learned: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0
    lengths: list[int] = field(default_factory=list, repr=False)

    def count(self, examples: Iterable[Example]) -> None:
        """Count rows that are kept."""
        for example in examples:
            self.lengths.append(len(example.ids))
            self.kept += 1
            self.tokens += len(example.ids)
            self.supervised += example.supervised
            self.longest = max(self.longest, len(example.ids))

    def add(self, other: "EncodingReport") -> None:
        """Take in what became of other records."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            setattr(self, name, max(own, value) if name == "longest" else own + value)

    def require_rows(self, lengths: Lengths) -> None:
        """Raises DataError if nothing is left."""
        if not self.kept:
            raise DataError(
                f"nothing is left of {self.read} records: {self.dropped} are longer than --max_len {lengths.max_len} "
                f"or --max_src_len {lengths.max_src_len}, {self.nothing_learned} have nothing to learn"
            )

    def lines(self) -> list[str]:
        lengths = sorted(self.lengths)
        middle, most = lengths[len(lengths) // 2], lengths[int(len(lengths) * 0.95)]
        also = {
            "dialogues cut to their newest turns": self.cut_turns,
            "answers empty (the end token alone is learned)": self.empty_answers,
            "left out with nothing to learn": self.nothing_learned,
        }
        return [
            f"data: {self.read} records read, {self.kept} rows kept, {self.dropped} dropped as too long, "
            f"{self.cut_prompt} prompts and {self.cut_answer} answers cut"
            + "".join(f", {count} {what}" for what, count in also.items() if count),
            f"data: {self.tokens} tokens, {self.supervised / self.tokens:.1%} supervised; "
            f"length median {middle}, 95% {most}, longest {self.longest}",
        ]


def encode_prompt(
    tokenizer: Any, question: str | Sequence[dict[str, Any]], max_src_len: int, template: str = "default"
) -> tuple[list[int], bool]:
    """Ids of the prompt, at most `max_src_len`, and whether it was cut.

    A cut leaves out the oldest turns of a dialogue; of what is left it keeps the start and the answer's cue.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    whole = prompt = prompt_ids(tokenizer, messages, template)
    while len(prompt) > max_src_len and (shorter := without_oldest_turn(messages)) is not None:
        messages, prompt = shorter, prompt_ids(tokenizer, shorter, template)
    return keep_cue(prompt, cue_length(tokenizer, prompt, template), max_src_len), len(whole) > max_src_len


def keep_cue(prompt: list[int], cue: int, length: int) -> list[int]:
    """The prompt's start and its cue, in at most `length` tokens."""
    return prompt if len(prompt) <= length else prompt[: max(0, length - cue)] + prompt[len(prompt) - cue :]


def without_oldest_turn(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The conversation from its second question on, what stands before the first kept; None if there is only one."""
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return None if len(questions) < 2 else [*messages[: questions[0]], *messages[questions[1] :]]


def encode_records(
    records: Iterable[Record],
    tokenizer: Any,
    lengths: Lengths,
    template: str = "default",
    loss_on: str = "flagged",
) -> tuple[list[Example], EncodingReport]:
    """Encode all records.

    Raises:
        DataError: a conversation that the family cannot express, or nothing left to train on.
    """
    examples, report = [], EncodingReport()
    for record in records:
        examples += encode_record(record, tokenizer, lengths, template, loss_on, report)
    report.count(examples)
    report.require_rows(lengths)
    return examples, report


def encode_record(
    record: Record, tokenizer: Any, lengths: Lengths, template: str, loss_on: str, report: EncodingReport
) -> list[Example]:
    """The rows of one record; counts what becomes of it. Raises DataError for what the family cannot express."""
    report.read += 1
    try:
        return _rows_of(record, tokenizer, lengths, template, loss_on, report)
    except ValueError as error:
        raise DataError(f"{record.place}: {error}") from None


def _rows_of(
    record: Record, tokenizer: Any, lengths: Lengths, template: str, loss_on: str, report: EncodingReport
) -> list[Example]:
    examples = []
    conversations = targets(tokenizer, record.messages, template, loss_on)
    report.nothing_learned += not conversations
    for messages in conversations:
        row, turns_cut = newest_turns(tokenizer, messages, lengths, template)
        example, prompt_cut, answer_cut = cut(row, tokenizer, lengths, template, record.place)
        if lengths.is_skip and (turns_cut or prompt_cut or answer_cut):
            report.dropped += 1
            continue
        report.cut_turns += turns_cut
        report.cut_prompt += prompt_cut
        report.cut_answer += answer_cut
        report.empty_answers += row.last and not messages[-1]["content"]
        examples.append(example)
    return examples


def newest_turns(
    tokenizer: Any, messages: Sequence[dict[str, Any]], lengths: Lengths, template: str
) -> tuple[Row, bool]:
    """The row of a conversation without its oldest turns, as many as it takes to fit, and whether any was left out."""
    row, turns_cut = make_row(tokenizer, messages, template), False
    while len(row.prompt) + len(row.answer or ()) + 1 > lengths.max_len:
        shorter = without_oldest_turn(messages)
        if shorter is None:
            break
        messages, turns_cut = shorter, True
        row = make_row(tokenizer, messages, template)
    is_dialogue = turns_cut or (len(messages) > 2 and sum(message["role"] == "user" for message in messages) > 1)
    return (replace(row, dialogue=True) if is_dialogue else row), turns_cut


def cut(row: Row, tokenizer: Any, lengths: Lengths, template: str, place: str) -> tuple[Example, bool, bool]:
    """A row of at most `max_len` tokens, and whether its prompt and its answer were cut."""
    answer = row.answer or []
    beside, unused = extra_lengths(tokenizer, template)
    longest_prompt = lengths.max_src_len + beside
    if row.dialogue:
        longest_prompt = max(longest_prompt, lengths.max_len - len(answer) - 1)
    prompt, labelled = row.prompt, row.learned
    if len(prompt) > longest_prompt:
        cue = 0 if row.answer is None else cue_length(tokenizer, prompt, template)
        prompt = keep_cue(prompt, cue, longest_prompt)
        kept, tail = len(prompt) - cue, len(row.prompt) - cue  # what was between them is gone
        labelled = {i if i < kept else i - tail + kept for i in row.learned if i < kept or i >= tail}
    room = max(0, lengths.max_len - len(prompt) - 1 - unused)
    room = room if lengths.max_tgt_len is None else min(room, lengths.max_tgt_len)
    ids = [*prompt, *answer[:room], tokenizer.end_id]
    found = spans(labelled) if labelled else ()
    if row.last:
        first = len(prompt)
        if found and found[-1][1] == first:
            first, found = found[-1][0], found[:-1]
        found = (*found, (first, len(ids)))
    return Example(ids, found, place), len(prompt) < len(row.prompt), len(answer) > room


def spans(positions: Iterable[int]) -> tuple[Span, ...]:
    """Sorted positions as [first, end) runs."""
    found: list[Span] = []
    for i in sorted(positions):
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return tuple(found)
