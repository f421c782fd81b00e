import json
from collections import Counter

import pytest

from glmft.data.dataset import Rows, draw, lengths_of, load_rows, packed, rows_per_source, split
from glmft.data.encode import Example
from glmft.errors import DataError
from glmft.settings.config import TrainConfig
from glmft.settings.sources import find_sources


def write(path, count: int, answer: str):
    rows = [{"instruction": f"{i}", "output": answer} for i in range(count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_sources_are_mixed_by_weight(tokenizer, tmp_path):
    write(tmp_path / "a.json", 30, "云")
    write(tmp_path / "b.json", 10, "川")
    loaded = load_rows(
        find_sources(f"{tmp_path}/a.json:1,{tmp_path}/b.json:3"), TrainConfig(), tokenizer, 1, tmp_path / "cache"
    )
    places = Counter(example.place.split("/")[-1].split(":")[0] for example in loaded.examples)
    assert places == {"a.json": 10, "b.json": 30}
    assert any("b.json gives 30 of 40 rows (3.00 times its own)" in line for line in loaded.lines)


def test_without_weights_every_record_comes_once(tokenizer, tmp_path):
    write(tmp_path / "a.json", 5, "云")
    write(tmp_path / "b.json", 7, "川")
    loaded = load_rows(find_sources(str(tmp_path)), TrainConfig(), tokenizer, 1, tmp_path / "cache")
    assert len({example.place for example in loaded.examples}) == len(loaded.examples) == 12


def test_a_draw_takes_every_row_equally_often():
    counts = Counter(draw(7, 17, seed=3))
    assert set(counts.values()) <= {2, 3}
    assert sum(counts.values()) == 17
    assert draw(7, 17, seed=3) == draw(7, 17, seed=3) != draw(7, 17, seed=4)
    assert rows_per_source([30, 10], [1.0, 3.0]) == [10, 30]


def test_bad_records_are_counted(tokenizer, tmp_path):
    write(tmp_path / "a.json", 2, "云")
    with (tmp_path / "a.json").open("a", encoding="utf-8") as file:
        file.write("17\n")
    config = TrainConfig(on_bad_record="skip")
    loaded = load_rows(find_sources(f"{tmp_path}/a.json"), config, tokenizer, 1, tmp_path / "cache")
    assert len(loaded.examples) == 2
    assert [place.split(":")[-1] for place, _ in loaded.rejected] == ["3"]
    assert "1 bad records left out" in loaded.lines[-2]
    assert loaded.lines[-1].startswith("warning: data: 1 of 3 records are bad and left out")


@pytest.mark.parametrize(("family", "total"), [("glm", 128), ("glm2", 129), ("glm3", 129)])
def test_source_and_target_lengths_mean_what_the_official_scripts_mean(family, total):
    lengths = lengths_of(TrainConfig(max_source_length=64, max_target_length=64), family)
    assert (lengths.max_len, lengths.max_src_len, lengths.max_tgt_len) == (total, 64, 64)


def numbered(count: int) -> Rows:
    return Rows([Example([i], ((0, 1),), str(i)) for i in range(count)], [10 + i for i in range(count)], [], ["read"])


def test_rows_are_held_out_by_a_share_and_a_seed():
    trained, validation = split(numbered(40), 0.25, seed=1)
    parts = [[example.ids[0] for example in part.examples] for part in (trained, validation)]
    assert [len(part) for part in parts] == [30, 10]
    assert sorted(parts[0] + parts[1]) == list(range(40))
    assert parts[1] != list(range(10))
    for part, numbers in zip((trained, validation), parts, strict=True):
        assert numbers == sorted(numbers)
        assert part.lengths == [10 + i for i in numbers]
    assert (trained.lines, validation.lines) == (["read", "data: 10 of 40 rows held out for validation"], [])
    assert [split(numbered(40), 0.25, seed)[1].lengths == validation.lengths for seed in (1, 2)] == [True, False]


def test_at_least_one_row_is_held_out_and_one_is_trained():
    assert [len(part.examples) for part in split(numbered(2), 0.01, seed=1)] == [1, 1]
    for count, ratio in ((1, 0.5), (3, 0.9)):
        with pytest.raises(DataError, match=rf"--val_ratio {ratio}: leaves nothing of {count} rows to train on"):
            split(numbered(count), ratio, seed=1)


def test_packed_rows_have_the_lengths_of_their_documents():
    joined = packed(numbered(7), max_len=30, seed=0)
    assert joined.lengths == [
        len(row.parts) and sum(10 + int(p) for p in row.place.split(", ")) for row in joined.examples
    ]
    assert sum(joined.lengths) == sum(range(10, 17))
    assert joined.lines == ["read", f"data: 7 documents packed into {len(joined.lengths)} rows"]


def test_every_source_has_a_row_however_small_its_weight():
    assert rows_per_source([1000, 10], [1000.0, 0.1]) == [1010, 1]
