import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glmft.data.formats import read_records
from glmft.data.record import Options
from glmft.errors import DataError
from glmft.files import digest_of
from glmft.settings.sources import find_sources

ROWS = [
    {"instruction": "抽取：", "input": '风扇\n不转, "真"', "output": "风扇_部件故障_不转"},
    {"instruction": "你好", "input": None, "output": "好"},
]


def written(tmp_path, content: str | bytes, name: str = "data.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def told(path, **options) -> list[tuple[str, str]]:
    """Questions and answers of a file."""
    return [(r.messages[-2]["content"], r.answer) for r in read_records(path, Options(**options))[0]]


WANTED = [('抽取：风扇\n不转, "真"', "风扇_部件故障_不转"), ("你好", "好")]
CSV = 'instruction,input,output\n抽取：,"风扇\n不转, ""真""",风扇_部件故障_不转\n\n你好,,好\n'


def test_every_kind_of_table_gives_the_records_of_json(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "data.parquet")
    for name, opened in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with opened(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    written(tmp_path, CSV)
    written(tmp_path, gzip.compress(b"\xef\xbb\xbf" + CSV.encode()), "data.csv.gz")
    written(tmp_path, CSV.replace("\n", "\r\n").replace(",", ";").replace("不转;", "不转,"), "data2.csv")
    written(tmp_path, CSV.replace(",", "\t").replace("不转\t", "不转,"), "data.tsv")
    [source] = find_sources(str(tmp_path))
    assert len(source.files) == 7
    for path in source.files:
        assert [(q.replace("\r", ""), a) for q, a in told(path)] == WANTED, path


def test_places_are_lines_of_csv_and_numbers_of_parquet(tmp_path):
    assert [r.place.rpartition("/")[2] for r in read_records(written(tmp_path, CSV))[0]] == ["data.csv:2", "data.csv:5"]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data.parquet", row_group_size=1)
    places = [r.place.rpartition("/")[2] for r in read_records(tmp_path / "data.parquet")[0]]
    assert places == ["data.parquet: record 1", "data.parquet: record 2"]


def test_the_index_of_pandas_and_empty_rows_of_a_spreadsheet_are_no_part_of_the_records(tmp_path):
    assert told(written(tmp_path, ",instruction,output\n0,问,答\n,,\n")) == [("问", "答")]


def test_dialogues_may_stand_in_a_column_as_json_or_as_lists(tmp_path):
    spoken = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
    cell = json.dumps(spoken, ensure_ascii=False).replace('"', '""')
    assert told(written(tmp_path, f'id,conversations\n1,"{cell}"\n')) == [("问", "答")]
    messages = [[{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "loss": True}]]
    pq.write_table(pa.table({"messages": messages}), tmp_path / "data.parquet")
    assert told(tmp_path / "data.parquet") == [("问", "答")]


def test_columns_of_any_name_can_be_mapped(tmp_path):
    path = written(tmp_path, "问题,标准,备注\n问,答,无\n")
    assert told(path, prompt_column="问题", response_column="标准") == [("问", "答")]


def test_a_cell_larger_than_the_csv_modules_limit_is_read(tmp_path):
    [record], _ = read_records(written(tmp_path, "text\n" + "云" * 200_000))
    assert len(record.messages[0]["content"]) == 200_000


@pytest.mark.parametrize("name", ["data.csv", "data.parquet"])
def test_the_digest_of_what_was_read_is_the_files(name, tmp_path):
    from glmft.data.read import raw_records

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data.parquet")
    path, seen = written(tmp_path, CSV) if name == "data.csv" else tmp_path / name, {}
    assert len(list(raw_records(path, seen))) == 2
    assert seen == {path: digest_of(path)}


HEAD = "instruction,output\n"
BAD = [
    ("", "holds no record"),
    (HEAD, "holds no record"),
    ("instruction,instruction\na,b\n", ":1: column 'instruction' stands twice"),
    (",,\na,b,c\n", ":1: the first line names no column"),
    (HEAD + "a,b\nc,d,e\n", ":3: 3 fields, but line 1 names 2; put a field that holds ',' in quotes"),
    (HEAD + "a\n", ":2: 1 fields, but line 1 names 2"),
    (HEAD + 'a,"b\nc,d\n', ":2: a quote is opened here and never closed"),
    (HEAD + '"a"b,c\n', ":2: text behind a closing quote"),
    (HEAD.encode() + "云,川\n".encode("gbk"), ":2: is not UTF-8; save the file as UTF-8"),
    (HEAD.encode("utf-16"), ":1: is not UTF-8"),
    (HEAD + "a\0,b\n", ":2: a text holds a NUL byte"),
    (HEAD + ",b\n", ":2: instruction and input are both empty"),
    ("instruction|output\na|b\n", ":2: an object with instruction|output: of no known format"),
]


@pytest.mark.parametrize(("content", "part"), BAD, ids=[part for _, part in BAD])
def test_what_is_wrong_with_a_table_is_named_with_its_line(content, part, tmp_path):
    with pytest.raises(DataError) as error:
        read_records(written(tmp_path, content))
    [problem] = error.value.problems
    assert part in problem
    assert problem.count("data.csv") == 1


def test_bad_rows_can_be_skipped(tmp_path):
    content = (HEAD + "a,b\nc\n").encode() + b"\xff,x\n" + HEAD[:-1].encode() + b'\n"q"x,y\nd,e\n'
    records, rejected = read_records(written(tmp_path, content), Options(on_bad_record="skip"))
    assert [record.answer for record in records] == ["b", "output", "e"]
    assert [place.rpartition(":")[2] for place, _ in rejected.reasons] == ["3", "4", "6"]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("data.json", CSV, ":1: is no JSON but text; a table's name must end in .csv or .tsv"),
        ("data.txt", "从前有座山\n山里有座庙", 'a document goes into {"text": …}'),
        ("data.json", b"PAR1abc", "is a Parquet file; let its name end in .parquet"),
        ("data.xlsx", b"PK\x03\x04abc", "an Excel workbook; unpack it, or save the sheet as CSV UTF-8"),
        ("data.json", gzip.compress(b"{}", mtime=0), "is packed with gzip; let its name end in .gz"),
        ("data.json", "{}".encode("utf-16"), "is UTF-16; save the file as UTF-8"),
        ("data.parquet", CSV, "data.parquet: is no readable Parquet file"),
        ("data.arrow", CSV, "data.arrow: is no readable Arrow file"),
        ("data.parquet", b"", "data.parquet: is no readable Parquet file"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is_once(name, content, part, tmp_path):
    with pytest.raises(DataError) as error:
        read_records(written(tmp_path, content, name))
    [problem] = error.value.problems
    assert part in problem
    assert "broken JSON" not in problem


def test_a_column_that_stands_twice_in_parquet_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(DataError, match="column 'text' stands twice"):
        read_records(tmp_path / "data.parquet")


def test_folders_that_datasets_saved_are_read_by_the_split_that_the_flag_means(tmp_path):
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    whole = Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "whole"), num_shards=2)
    (tmp_path / "whole" / "cache-1.arrow").touch()
    DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(str(tmp_path / "splits"))
    [source] = find_sources(str(tmp_path / "whole"))
    assert [answer for path in source.files for _, answer in told(path)] == [row["output"] for row in ROWS]
    for flag, count in (("--train_path", 2), ("--val_path", 1), ("--test_path", 1), ("DATA", 2)):
        [source] = find_sources(str(tmp_path / "splits"), flag)
        assert len(told(source.files[0])) == count, flag
