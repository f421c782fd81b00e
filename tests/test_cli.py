import pytest

from glmft import __version__
from glmft.cli import COMMANDS, main


def test_without_a_command_the_usage_is_shown(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "glmft train" in capsys.readouterr().out


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_command_is_one_line(capsys):
    assert main(["tarin"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: tarin: no such command; there are {', '.join(COMMANDS)}"]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["merge"], "--model_dir: name the folder"),
        (["merge", "--model_dir", "nowhere"], "nowhere: no such folder"),
        (["predict", "--test_path", "nowhere.json"], "nowhere.json: no such file"),
        (["predict", "--model_name_or_path", "nowhere"], "nowhere: no such folder"),
        (["predict", "--max_new_tokens", "many"], "--max_new_tokens"),
        (["predict", "--prompt", " "], "--prompt: is empty"),
        (["predict", "--prompt", "云", "--test_path", "a.json"], "exclude each other"),
        (["predict", "--num_beams", "0"], "--num_beams 0: must be at least 1"),
        (["predict", "--top_p", "1.5"], "--top_p 1.5: must be more than 0 and at most 1"),
        (["score"], "name the predictions: glmft score FILE"),
        (["score", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["score", "a", "--output_file", "README.md"], "README.md: is there already"),
        (["score", "a", "--make_sheet", "b.csv", "--output_file", "b.json"], "exclude each other"),
        (["score", "--sum_sheet", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["inspect"], "name the data: glmft inspect DATA"),
        (["inspect", "nowhere.json"], "DATA nowhere.json: no such file"),
        (["inspect", "examples/quickstart/test.json", "--records", "0,x"], "--records x: is no row number"),
        (["inspect", "examples/quickstart/test.json", "--records", "900"], "--records 900: the last row is 199"),
        (["inspect", "examples/quickstart/test.json", "--max_source_length", "9"], "needs the other of"),
        (["train", "--no_such_flag"], "--no_such_flag: no such setting"),
        (["chat", "nowhere"], "nowhere: no such folder"),
        (["chat", "--temperature", "nan"], "--temperature nan: must be more than 0"),
        (["serve", "--host", "0.0.0.0"], "--host 0.0.0.0: would let everybody who reaches it use the models"),
        (["serve", "--host", "0.0.0.0", "--api_key", ""], "--api_key: must be of 1 to 512"),
        (["serve", "--host", "no.such.host.invalid", "--insecure"], "no such host"),
        (["serve", "--port", "70000"], "--port 70000: must be at least 0 and at most 65535"),
        (["serve", "--max_queue", "0"], "--max_queue 0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, part, capsys):
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert part in lines[0]


def test_only_rank_0_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["tarin"]) == 2
    assert capsys.readouterr().err == ""


def test_predictions_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "generated_predictions.txt").write_text("mine")
    assert main(["predict", "--output_dir", str(tmp_path)]) == 2
    assert "holds predictions already" in capsys.readouterr().err
    assert (tmp_path / "generated_predictions.txt").read_text() == "mine"


def test_inspect_shows_what_would_be_learned(capsys):
    assert main(["inspect", "examples/quickstart/test.json", "--records", "0,3", "--color", "never"]) == 0
    printed = capsys.readouterr().out
    assert "data: 200 records read, 200 rows kept" in printed
    assert "test.json:1: " in printed
    assert "test.json:4: " in printed
    assert "'[gMASK]': " in printed


@pytest.mark.parametrize("command", ["serve", "web"])
def test_what_is_not_installed_is_named_with_how_to_get_it(command, capsys, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: glmft {command} needs ")
    assert line.endswith('install with: pip install "glmft[web]"')
