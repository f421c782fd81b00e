"""Names that come with a request open nothing but what the page has listed."""

import os

import pytest

from glmft.errors import ConfigError
from glmft.web.places import MOST_LISTED, Root


@pytest.fixture
def root(tmp_path) -> Root:
    folder = tmp_path / "output"
    (folder / "run" / "deep").mkdir(parents=True)
    (folder / "run" / "file.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    (tmp_path / "output-2").mkdir()
    (folder / "away").symlink_to(tmp_path)
    (folder / "run" / "file-away.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "run" / "best").symlink_to("deep")
    (folder / "round").symlink_to("round")
    return Root(folder, "--output_root")


def test_what_lies_inside_is_given(root):
    assert root.inside("run", "file.txt").read_text() == "inside"
    assert root.inside("run/best") == root.path / "run" / "deep"


@pytest.mark.parametrize(
    "name",
    ["..", "../secret.txt", "run/../../secret.txt", "/etc/passwd", "//etc", "away/secret.txt", "away", "", "a\0b",
     "run\\..\\x", "../output-2", "round"],
)  # fmt: skip
def test_a_name_that_leads_out_is_refused(root, name):
    with pytest.raises(ConfigError):
        root.inside(name)


@pytest.mark.parametrize("name", ["file-away.txt", "../../secret.txt", "/etc/passwd"])
def test_so_is_a_file_of_a_run_that_leads_out(root, name):
    with pytest.raises(ConfigError):
        root.inside("run", name)


def test_links_hidden_files_and_what_lies_too_deep_are_not_listed(root):
    (root.path / ".hidden").write_text("")
    (root.path / "1/2/3/4/5/6/7/8").mkdir(parents=True)
    names = root.listed(lambda path: True)
    assert not {"away", "round", ".hidden", "run/best", "run/file-away.txt", "1/2/3/4/5/6/7/8"} & {*names}
    assert {"run", "run/file.txt", "run/deep", "1/2/3"} <= {*names}


def test_the_newest_is_listed_first_and_not_without_end(tmp_path):
    for i in range(MOST_LISTED + 5):
        (tmp_path / f"{i:04}").write_text("")
        os.utime(tmp_path / f"{i:04}", (i, i))
    names = Root(tmp_path, "--output_root").listed(lambda path: True)
    assert len(names) == MOST_LISTED
    assert names[0] == f"{MOST_LISTED + 4:04}"


def test_a_single_file_is_itself_whatever_is_asked_for(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    assert Root(tmp_path / "a.json", "--data_path").inside("a.json") == tmp_path / "a.json"


def test_a_folder_that_is_not_there_lists_nothing(tmp_path):
    assert Root(tmp_path / "none", "--output_root").listed(lambda path: True) == []
