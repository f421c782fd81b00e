"""Records and data files that are damaged or strange."""

import copy
import gzip
import json
import random
import time
from collections import Counter

import pytest

from glmft.data.encode import EncodingReport, Lengths, Rules, encode_prompt, encode_record
from glmft.data.formats import Record

from .conftest import RECORDS, changed, fifo
from .mutations import DELETE, VALUES, damaged, mutated_json, nested, paths_of, replaced
from .rule import attempt
from .test_folders import tries

BATCH = 25


@tries(5)
def test_records(seed, place, capsys):
    broken, codes = [], Counter()
    for number in range(BATCH):
        rng = random.Random(1000 * seed + number)
        record = copy.deepcopy(rng.choice(RECORDS))
        lines = [json.dumps(record, ensure_ascii=False)] * 3
        kind = rng.choice(["json", "json", "value", "value", "loss", "bytes", "array", "gzip"])
        if kind == "json":
            lines[1] = mutated_json(record, rng).replace("\n", " ")
        elif kind == "value":
            place_ = rng.choice(paths_of(record))
            lines[1] = json.dumps(replaced(record, place_, rng.choice([DELETE, *VALUES])))
        elif kind == "loss":
            literal = rng.choice(["1e400", "NaN", "[]", '"x"', "1e308", "9" * 400, "null", '"\\ud800"'])
            lines[1] = '{"messages": [{"role": "assistant", "content": "a", "loss": ' + literal + "}]}"
        text = "\n".join(lines)
        data = damaged(text.encode(), rng) if kind == "bytes" else text.encode("utf-8", "surrogatepass")
        data = b"[" + b",".join(data.split(b"\n")) + b"]" if kind == "array" else data
        name = "bad.jsonl.gz" if kind == "gzip" else "bad.json"
        changed(place / name, damaged(gzip.compress(data), rng) if kind == "gzip" else data)
        given = ["--data_path", name, "--model", "base", "--on_bad_record", rng.choice(["error", "skip"])]
        result = attempt("inspect", given, place, capsys)
        codes[result.code] += 1
        if result.broken:
            broken.append((number, result.broken, result.lines[:3]))
        (place / name).unlink()
    print(codes)
    assert not broken, broken
    assert codes[2]


def talk(*messages: str, key: str = "messages", before: str = "") -> str:
    """A conversation whose later messages are given as JSON text."""
    return "{" + before + f'"{key}": [' + ", ".join(['{"role": "user", "content": "a"}', *messages]) + "]}"


ANSWER = '"role": "assistant", "content": "b"'
CALL = json.dumps(
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": f'{{"x": {nested(90_000)}}}'}}]}
)
TOOL = '{"role": "tool", "name": "f", "observation": 1, "parameters": {"x": ' + nested(3000) + "}}"
TRAPS = {
    "a surrogate in tools": talk("{" + ANSWER + "}", before='"tools": "\\ud800", '),
    "deep arguments": talk(TOOL, key="conversations"),
    "deep arguments in a text": talk(CALL),
    "an infinite loss": talk("{" + ANSWER + ', "loss": 1e400}'),
    "a key twice among very many": "{" + ",".join(f'"k{i}": 1' for i in range(200_000)) + ', "k7": 2}',
    "a long line": '{"instruction": "' + "a" * (70 << 20) + '", "output": "b"}',
    "a long key": json.dumps({"k" * 100_000: 1}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_record_set_as_a_trap(trap, place, capsys):
    changed(place / "bad.json", TRAPS[trap])
    result = attempt("inspect", ["--data_path", "bad.json", "--model", "base"], place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


def test_a_gzip_file_that_unpacks_to_far_more_than_it_is(place, capsys):
    with gzip.open(place / "bomb.json.gz", "wb", compresslevel=9) as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
    result = attempt("inspect", ["--data_path", "bomb.json.gz", "--model", "base"], place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


def test_a_pipe_is_no_data_file(place, capsys):
    fifo(place / "pipe.json")
    result = attempt("inspect", ["--data_path", "pipe.json", "--model", "base"], place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


def dialogue(turns: int) -> tuple[dict[str, str], ...]:
    return tuple(
        message
        for i in range(turns)
        for message in ({"role": "user", "content": "云川岭" * (i % 4 + 1)}, {"role": "assistant", "content": "好的"})
    )


def seconds_of(tokenizer, turns: int) -> float:
    started = time.process_time()
    encode_prompt(tokenizer, list(dialogue(turns))[:-1], 1024)
    rules = Rules(Lengths(1024, 256), loss_on="last")
    encode_record(Record(dialogue(turns), "x"), tokenizer, rules, EncodingReport())
    return time.process_time() - started


def test_ten_thousand_turns_cost_little_more_than_a_hundred(tokenizer):
    few = min(seconds_of(tokenizer, 100) for _ in range(3))
    assert seconds_of(tokenizer, 10_000) < 100 * few + 1


def test_what_is_kept_of_a_dialogue_is_what_leaving_out_turn_by_turn_keeps(tokenizer):
    rng = random.Random(7)
    for _ in range(30):
        messages = dialogue(rng.randint(1, 90))[:-1]
        longest = rng.choice([40, 100, 400, 2000])
        questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
        rows = [tokenizer.chat_ids(messages[first:]) for first in questions]
        expected = next((row for row in rows if len(row) <= longest), rows[-1])
        prompt, was_cut = encode_prompt(tokenizer, messages, longest)
        if len(expected) <= longest:
            assert prompt == expected
        assert was_cut == (len(rows[0]) > longest)
