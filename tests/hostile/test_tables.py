"""Tables that are damaged or set as traps: CSV, Parquet, Arrow."""

import json
import random
import struct
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import DIALOGUE, RECORD, changed, fifo
from .mutations import damaged
from .rule import attempt
from .test_folders import tries

BATCH = 25
ROWS = [{**RECORD, "tools": json.dumps(DIALOGUE["tools"])}] * 3
CSV = 'instruction,input,output\n"请复述：\n",云川,云川\n请复述：,"岭,""溪""",岭溪\n'


def as_csv(path) -> None:
    path.write_text(CSV, encoding="utf-8")


def as_parquet(path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def as_dialogues(path) -> None:
    pq.write_table(pa.Table.from_pylist([DIALOGUE] * 3), path)


def as_arrow(path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {"bad.csv": as_csv, "bad.parquet": as_parquet, "worse.parquet": as_dialogues, "bad.arrow": as_arrow}


def strange_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damaged; or with a length or an offset in it that cannot be."""
    if rng.random() < 0.5:
        return damaged(data, rng)
    at = rng.randrange(len(data) - 8)
    number = struct.pack("<i", rng.choice([-1, 2**31 - 1, -(2**31), 0, 1 << 20]))
    return data[:at] + number + data[at + 4 :]


@tries(1)
def test_damaged_tables(seed, place, capsys):
    broken, codes = [], Counter()
    for number in range(BATCH):
        rng = random.Random(1000 * seed + number)
        name = rng.choice(sorted(WRITERS))
        WRITERS[name](place / name)
        changed(place / name, strange_bytes((place / name).read_bytes(), rng))
        given = ["--data_path", name, "--model", "base", "--on_bad_record", rng.choice(["error", "skip"])]
        result = attempt("inspect", given, place, capsys)
        codes[result.code] += 1
        if result.broken:
            broken.append((number, name, result.broken, result.lines[:3]))
        (place / name).unlink()
    print(codes)
    assert not broken, broken
    assert codes[2]


TRAPS = {
    "an open quote before very much": 'instruction,output\n"a,b\n' + "x,y\n" * 200_000,
    "a long line": "instruction,output\na," + "b" * (65 << 20),
    "very many columns": ",".join(f"c{i}" for i in range(100_000)) + "\n" + "a," * 99_999 + "a\n",
    "a column very many times": "a," * 100_000,
    "deep history": "query,response,history\na,b," + "[" * 90_000 + "\n",
    "deep messages": 'messages\n"' + "[" * 3000 + '"\n',
    "half a pair in tools": 'conversations,tools\n"[{""from"": ""gpt"", ""value"": ""a""}]","[""\\ud800""]"\n',
    "NUL bytes": "\0" * 5000,
    "only quotes": '"' * 9999,
    "a control character in a name": "\x1b[31minstruction,\x1b[31moutput\na,b\n",
    "old line ends": "instruction,output\ra,b\r",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_table_set_as_a_trap(trap, place, capsys):
    changed(place / "bad.csv", TRAPS[trap])
    result = attempt("inspect", ["--data_path", "bad.csv", "--model", "base"], place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


def test_a_pipe_is_no_table_and_no_saved_folder(place, capsys):
    for name in ("pipe.csv", "pipe.parquet", "pipe.arrow"):
        fifo(place / name)
        result = attempt("inspect", ["--data_path", name, "--model", "base"], place, capsys, harmless=False)
        assert not result.broken, (result.broken, result.lines)
    (place / "saved").mkdir()
    (place / "saved" / "state.json").write_text('{"_data_files": [{"filename": "../data.json"}]}')
    result = attempt("inspect", ["--data_path", "saved", "--model", "base"], place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


def test_a_bare_pickle_inside_arrow_is_never_loaded(place, capsys):
    evil = b"\x80\x04c" + b"canary\nrun\n)R."
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil}
    field = pa.field("text", pa.string(), metadata=marks)
    table = pa.Table.from_arrays([pa.array(["云"])], schema=pa.schema([field]))
    with pa.ipc.new_stream(str(place / "bad.arrow"), table.schema) as writer:
        writer.write_table(table)
    result = attempt("inspect", ["--data_path", "bad.arrow", "--model", "base"], place, capsys)
    assert result.code == 0, result.lines
