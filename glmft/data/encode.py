"""Conversations to ids and labels, cut to length; nothing is cut or dropped silently."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from glmft.data.formats import Record
from glmft.data.templates import (
    ExtraLengths,
    Row,
    cue_length,
    extra_lengths,
    learned_conversations,
    make_row,
    prompt_ids,
)
from glmft.errors import DataError

Span = tuple[int, int]
Made = TypeVar("Made")
FEW_MESSAGES = 64  # of a conversation that is tried as a whole first
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
        max_src_len: longest prompt of one question; a dialogue's may fill what its answer leaves of `max_len`. None:
            so may every prompt, and half of `max_len` where the answer would leave less.
        max_tgt_len: longest answer; None: what is left.
        is_skip: drop what is too long instead of cutting it.
    """

    max_len: int
    max_src_len: int | None = None
    max_tgt_len: int | None = None
    is_skip: bool = False

    @property
    def longest_prompt(self) -> int:
        """Of a prompt whose answer is not known: it leaves the end token its place."""
        return self.max_len - 1 if self.max_src_len is None else self.max_src_len


@dataclass
class EncodingReport:
    """What became of the records.

    Args:
        shortened: rows that are cut in one way or another.
        longest_prompt, longest_answer, longest_row: as they would be uncut, in tokens as the flags count; of a dialogue
            without the oldest turns that were cut.
    """

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
    shortened: int = 0
    longest_prompt: int = 0
    longest_answer: int = 0
    longest_row: int = 0
    lengths: list[int] = field(default_factory=list, repr=False)

    def count(self, examples: Iterable[Example]) -> None:
        """Count rows that are kept."""
        examples = list(examples)
        lengths = [len(example.ids) for example in examples]
        self.lengths += lengths
        self.kept += len(lengths)
        self.tokens += sum(lengths)
        self.supervised += sum(end - first for example in examples for first, end in example.spans)
        self.longest = max(self.longest, *lengths, 0)

    def measure(self, row: Row, extra: ExtraLengths) -> None:
        """Note the lengths of an uncut row."""
        prompt, answer = len(row.prompt), len(row.answer or ())
        self.longest_prompt = max(self.longest_prompt, prompt - extra.prompt)
        self.longest_answer = max(self.longest_answer, answer)
        self.longest_row = max(self.longest_row, prompt + answer + 1 + extra.unused)

    def add(self, other: "EncodingReport") -> None:
        """Take in what became of other records."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name.startswith("longest") else mine + value)

    def require_rows(self, lengths: Lengths) -> None:
        """Raises DataError if nothing is left."""
        if not self.kept:
            longest = {"max_len": lengths.max_len, "max_src_len": lengths.max_src_len}
            rule = " or ".join(f"--{name} {value}" for name, value in longest.items() if value is not None)
            raise DataError(
                f"nothing is left of {self.read} records: {self.dropped} are longer than {rule}, "
                f"{self.nothing_learned} have nothing to learn"
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
    """Ids of the prompt, at most `max_src_len` as the template counts them, and whether it was cut.

    A cut leaves out the oldest turns of a dialogue; of what is left it keeps the start and the answer's cue.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    longest = max_src_len + extra_lengths(tokenizer, template).prompt
    if template == "default" and not tokenizer.has_roles:
        tokenizer.check_roles(messages)
    prompt, turns_cut, _ = newest_that_fit(
        messages,
        lambda kept: prompt_ids(tokenizer, kept, template),
        lambda prompt: len(prompt) <= longest,
        template,
    )
    kept = keep_cue(prompt, cue_length(tokenizer, prompt, template), longest)
    return kept, turns_cut or len(kept) < len(prompt)


def keep_cue(prompt: list[int], cue: int, length: int) -> list[int]:
    """The prompt's start and its cue, in at most `length` tokens."""
    return prompt if len(prompt) <= length else prompt[: max(0, length - cue)] + prompt[len(prompt) - cue :]


def newest_that_fit(
    messages: Sequence[dict[str, Any]],
    make: Callable[[Sequence[dict[str, Any]]], Made],
    fits: Callable[[Made], bool],
    template: str = "default",
    guess: int = 1,
) -> tuple[Made, bool, int]:
    """What is made of a conversation without as many of its oldest turns as it takes to fit.

    What stands before the first question stays. From a guess on turns are added or left out, twice as many each time,
    and the last step is halved again: the time hangs on what fits, not on how long the dialogue is.

    Args:
        guess: turns that may fit.

    Returns:
        It, whether turns were left out, and how many were kept.
    """
    if len(messages) <= FEW_MESSAGES or template != "default":
        made = make(messages)
        if fits(made):
            return made, False, guess
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    backwards = (i for i in range(len(messages) - 1, first - 1, -1) if messages[i]["role"] == "user")
    starts: list[int] = []  # of the newest turns, the last one first

    def available(count: int) -> int:
        starts.extend(islice(backwards, max(0, count - len(starts))))
        return min(count, len(starts))

    def newest(count: int) -> Made:
        return make([*messages[:first], *messages[starts[count - 1] :]])

    low, high, step, kept = 0, available(guess), 1, None  # turns that fit, turns to try
    if not high:
        return make(messages), False, guess
    while high > low and fits(made := newest(high)):
        low, kept = high, made
        high, step = available(low + step), 2 * step
    if high == low:
        return kept, False, low
    while high - low > 1:
        middle = max(low + 1, high - step) if low == 0 else (low + high) // 2
        step *= 2
        made = newest(middle)
        if fits(made):
            low, kept = middle, made
        else:
            high = middle
    return (kept, True, low) if low else (newest(1), starts[0] != first, 1)


@dataclass(frozen=True)
class Rules:
    """How conversations become rows.

    Args:
        template: one of `data.templates`.
        loss_on: which answers of a conversation are learned.
    """

    lengths: Lengths
    template: str = "default"
    loss_on: str = "flagged"


@dataclass
class EncodedRows:
    """Rows, what became of their records, and the records that the family cannot express."""

    rows: list[Example] = field(default_factory=list)
    report: EncodingReport = field(default_factory=EncodingReport)
    rejected: list[tuple[str, str]] = field(default_factory=list)


def encode_records(
    records: Iterable[Record], tokenizer: Any, rules: Rules, rejected: list[tuple[str, str]] | None = None
) -> EncodedRows:
    """The rows of some records.

    Args:
        rejected: what was refused of them before; the reasons found here follow in the records' order.
    """
    encoded = EncodedRows(rejected=[] if rejected is None else rejected)
    for record in records:
        try:
            encoded.rows += encode_record(record, tokenizer, rules, encoded.report)
        except DataError as error:
            encoded.rejected.append((record.place, error.problems[0]))
    encoded.report.count(encoded.rows)
    return encoded


def encode_record(record: Record, tokenizer: Any, rules: Rules, report: EncodingReport) -> list[Example]:
    """The rows of one record; counts what becomes of it. Raises DataError for what the family cannot express."""
    report.read += 1
    try:
        return _rows_of(record, tokenizer, rules, report)
    except ValueError as error:
        raise DataError(f"{record.place}: {error}") from None


def _rows_of(record: Record, tokenizer: Any, rules: Rules, report: EncodingReport) -> list[Example]:
    lengths, template, examples = rules.lengths, rules.template, []
    conversations = learned_conversations(tokenizer, record.messages, template, rules.loss_on)
    if conversations and template == "default" and not tokenizer.has_roles:
        tokenizer.check_roles(conversations[-1][:-1])
    report.nothing_learned += not conversations
    kept = 1  # of one conversation as many turns fit as of the one before, give or take a few
    for messages in conversations:
        row, turns_cut, kept = newest_turns(tokenizer, messages, lengths, template, kept)
        example, prompt_cut, answer_cut = cut(row, tokenizer, lengths, template, record.place)
        report.measure(row, extra_lengths(tokenizer, template))
        if lengths.is_skip and (turns_cut or prompt_cut or answer_cut):
            report.dropped += 1
            continue
        report.shortened += turns_cut or prompt_cut or answer_cut
        report.cut_turns += turns_cut
        report.cut_prompt += prompt_cut
        report.cut_answer += answer_cut
        report.empty_answers += row.last and not messages[-1].get("content")
        examples.append(example)
    return examples


def newest_turns(
    tokenizer: Any, messages: Sequence[dict[str, Any]], lengths: Lengths, template: str, guess: int = 1
) -> tuple[Row, bool, int]:
    """The row of a conversation; guess and results as `newest_that_fit` has them."""
    row, turns_cut, kept = newest_that_fit(
        messages,
        lambda kept: make_row(tokenizer, kept, template),
        lambda row: len(row.prompt) + len(row.answer or ()) + 1 <= lengths.max_len,
        template,
        guess,
    )
    is_dialogue = turns_cut or (len(messages) > 2 and sum(message["role"] == "user" for message in messages) > 1)
    return (replace(row, dialogue=True) if is_dialogue else row), turns_cut, kept


def cut(row: Row, tokenizer: Any, lengths: Lengths, template: str, place: str) -> tuple[Example, bool, bool]:
    """A row of at most `max_len` tokens, and whether its prompt and its answer were cut."""
    answer = row.answer or []
    extra = extra_lengths(tokenizer, template)
    longest_prompt = lengths.max_len // 2 if lengths.max_src_len is None else lengths.max_src_len + extra.prompt
    if row.dialogue or lengths.max_src_len is None:
        longest_prompt = max(longest_prompt, lengths.max_len - len(answer) - 1 - extra.unused)
    prompt, labelled = row.prompt, row.learned
    if len(prompt) > longest_prompt:
        cue = 0 if row.answer is None else cue_length(tokenizer, prompt, template)
        prompt = keep_cue(prompt, cue, longest_prompt)
        labelled = positions_after_cut(row.learned, len(row.prompt), len(prompt), cue)
    room = max(0, lengths.max_len - len(prompt) - 1 - extra.unused)
    room = room if lengths.max_tgt_len is None else min(room, lengths.max_tgt_len)
    end = tokenizer.eos_token_id if template == "raw" else tokenizer.end_id  # a base model knows no roles
    ids = [*prompt, *answer[:room], end]
    runs = spans(labelled) if labelled else ()
    if row.last:
        first = len(prompt)
        if runs and runs[-1][1] == first:
            first, runs = runs[-1][0], runs[:-1]
        runs = (*runs, (first, len(ids)))
    return Example(ids, runs, place), len(prompt) < len(row.prompt), len(answer) > room


def positions_after_cut(positions: Iterable[int], before: int, after: int, cue: int) -> set[int]:
    """Where positions of a prompt stand after its middle is gone.

    Args:
        before, after: the prompt's lengths.
        cue: tokens at its end that stay.
    """
    start, end = after - cue, before - cue  # what stood from `start` to `end` is gone
    kept_start = {i for i in positions if i < start}
    kept_cue = {i - (end - start) for i in positions if i >= end}
    return kept_start | kept_cue


def spans(positions: Iterable[int]) -> tuple[Span, ...]:
    """Sorted positions as [first, end) runs."""
    runs: list[Span] = []
    for i in sorted(positions):
        if runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return tuple(runs)
