"""A data file as a model would learn it."""

import dataclasses
import itertools

import pytest

from glmft.data.show import token_table
from glmft.errors import ConfigError, DataError
from glmft.settings.tools import InspectConfig
from glmft.web.places import Root
from glmft.web.records import chosen_file, data_files, histogram, read_learned


@pytest.fixture
def roots(tmp_path) -> list[Root]:
    folder = tmp_path / "data"
    for name in ("b.json", "deep/a.jsonl", "model/config.json", "model/tokenizer_config.json", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"instruction": "云", "input": "川", "output": "岭溪"}\n')
    (tmp_path / "single.json").write_text('{"instruction": "云", "input": "川", "output": "岭"}\n')
    return [Root(folder, "--data_path"), Root(tmp_path / "single.json", "--data_path")]


def test_files_of_records_are_offered_and_those_of_a_model_are_not(roots):
    assert list(data_files(roots)) == ["b.json", "deep/a.jsonl", "single.json"]


def test_files_of_one_name_are_told_apart(roots, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.json").write_text("[]")
    assert list(data_files([*roots, Root(tmp_path / "more", "--data_path")]))[-1] == "more/b.json"


@pytest.mark.parametrize("name", [None, "", "../single.json", "/etc/passwd", "model/config.json", "nothing.json"])
def test_nothing_but_an_offered_file_is_opened(roots, name):
    with pytest.raises(ConfigError, match="none of the files here"):
        chosen_file(roots, name)


def test_report_and_tokens_are_those_of_inspect(roots, tokenizer, tmp_path):
    config = InspectConfig(cache_dir=str(tmp_path / "cache"), num_proc=1)
    learned = read_learned(chosen_file(roots, "b.json"), config, tokenizer)
    assert any(line.startswith("data: 1 records read, 1 rows kept") for line in learned.report)
    place, tokens, more = learned.tokens(0, tokenizer)
    told = token_table(learned.rows.examples[0], tokenizer).splitlines()
    assert [f"{t.piece!r}: {t.id} -> {t.label}" for t in tokens] == told[1:]
    assert [t.piece for t in tokens if t.is_special] == ["[gMASK]", "sop", "</s>"]
    assert (place.rpartition("/")[2], more) == ("b.json:1", 0)
    with pytest.raises(ConfigError, match="the last one is 0"):
        learned.tokens(1, tokenizer)


def test_bad_records_are_counted_and_told(roots, tokenizer, tmp_path):
    path = chosen_file(roots, "b.json")
    path.write_text('{"instruction": "云", "input": "川", "output": "岭溪"}\n{"instruction": "云"}\n')
    config = InspectConfig(on_bad_record="skip", cache_dir=str(tmp_path / "cache"), num_proc=1)
    assert any("b.json:2" in line for line in read_learned(path, config, tokenizer).report)
    with pytest.raises(DataError):
        read_learned(path, dataclasses.replace(config, on_bad_record="error"), tokenizer)


def test_settings_out_of_range_are_a_sentence(roots, tokenizer):
    with pytest.raises(ConfigError, match="max_len"):
        read_learned(chosen_file(roots, "b.json"), InspectConfig(max_len=1), tokenizer)


def test_the_histogram_counts_every_row_once():
    assert histogram([]) == []
    assert histogram([5, 5, 5]) == [(5, 5, 3)]
    bins = histogram([*range(10, 110), 500], most=24)
    assert len(bins) <= 24
    assert sum(count for _, _, count in bins) == 101
    assert bins[0][0] == 10
    assert bins[-1][0] <= 500 <= bins[-1][1]
    assert all(high + 1 == low for (_, high, _), (low, _, _) in itertools.pairwise(bins))


def test_the_embedded_samples_are_found_without_a_data_path():
    from glmft.settings.web import WebConfig

    files = data_files([Root(path, "--data_path") for path in WebConfig().data_roots])
    assert "quickstart/train.json" in files
    assert not any("config" in name for name in files)
