import json
from collections import Counter

import pytest

from glmft.data.dataset import draw, lengths_of, load_rows, rows_per_source
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
    assert "1 bad records left out" in loaded.lines[-1]


@pytest.mark.parametrize(("family", "total"), [("glm", 128), ("glm2", 129), ("glm3", 129)])
def test_source_and_target_lengths_mean_what_the_official_scripts_mean(family, total):
    lengths = lengths_of(TrainConfig(max_source_length=64, max_target_length=64), family)
    assert (lengths.max_len, lengths.max_src_len, lengths.max_tgt_len) == (total, 64, 64)
