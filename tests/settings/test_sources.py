import pytest

from glmft.errors import ConfigError
from glmft.settings.sources import find_sources


@pytest.fixture
def folder(tmp_path):
    for name in ("a.json", "b.jsonl", "c.jsonl.gz", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(text):
    return [[file.name for file in source.files] for source in find_sources(text)]


def test_files_folders_globs_and_lists(folder):
    assert names(f"{folder}/a.json") == [["a.json"]]
    assert names(str(folder)) == [["a.json", "b.jsonl", "c.jsonl.gz"]]
    assert names(f"{folder}/*.json*") == [["a.json", "b.jsonl", "c.jsonl.gz"]]
    assert names(f"{folder}/a.json, {folder}/b.jsonl") == [["a.json"], ["b.jsonl"]]


def test_a_file_whose_name_looks_like_a_list(folder):
    (folder / "a,b:2.json").touch()
    assert names(f"{folder}/a,b:2.json") == [["a,b:2.json"]]


def test_weights(folder):
    assert [source.weight for source in find_sources(f"{folder}/a.json:0.7,{folder}/b.jsonl:3")] == [0.7, 3.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}/none.json", "no such file"),
        ("{}/*.csv", "matches no file"),
        ("{}/a.json:0", "the weight must be a positive number"),
        ("{}/a.json:nan", "the weight must be a positive number"),
        ("{0}/a.json:1,{0}/b.jsonl", "give a weight to every part or to none"),
        ("", "no such file"),
    ],
)
def test_what_names_nothing(text, message, folder):
    with pytest.raises(ConfigError, match=message):
        find_sources(text.format(folder))


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty.json").mkdir()
    with pytest.raises(ConfigError, match=r"a folder without any file that ends in \.json"):
        find_sources(str(tmp_path / "empty.json"))
