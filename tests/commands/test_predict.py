"""`glmft predict` on a made-up model that answers with the length of what it is asked, and on the tiny one."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from ranks import BASE

import glmft
from glmft.cli import main
from glmft.commands import predict as command

NAMES = {"generated_predictions.txt", "predict_config.json", "predict_results.json"}


@pytest.fixture
def stub(monkeypatch):
    """No model is loaded: each prompt is answered with its own ids, and every batch is noted."""
    batches = []

    def load(config):
        from glmft.tokenizers.loading import load_tokenizer

        return SimpleNamespace(), load_tokenizer(BASE)

    def generate(model, tokenizer, prompts, settings, numbers):
        batches.append(list(numbers))
        return [prompt[-6:] for prompt in prompts]

    monkeypatch.setattr(command, "load_for", load)
    monkeypatch.setattr("glmft.inference.generation.generate", generate)
    return batches


@pytest.fixture
def data(tmp_path):
    """Ten records of unlike lengths."""
    path = tmp_path / "data.jsonl"
    records = [{"instruction": "云川岭"[: 1 + i % 3] * (1 + 7 * i % 5), "output": f"岭_溪_{i}"} for i in range(10)]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def predict(data, out, *flags) -> int:
    return main(["predict", "--test_path", str(data), "--output_dir", str(out), "--device", "cpu", *flags])


def lines(out) -> list[dict]:
    text = (out / "generated_predictions.txt").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def names(out) -> set[str]:
    return {path.name for path in out.iterdir()}


def test_answers_are_in_the_order_of_the_records_whatever_the_batches(data, stub, tmp_path):
    assert predict(data, tmp_path / "a", "--per_device_eval_batch_size", "4") == 0
    assert predict(data, tmp_path / "b", "--max_tokens_per_batch", "1") == 0
    assert [row["labels"] for row in lines(tmp_path / "a")] == [f"岭_溪_{i}" for i in range(10)]
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert names(tmp_path / "a") == NAMES
    assert [len(batch) for batch in stub] == [4, 4, 2] + 10 * [1]


def test_what_is_answered_is_not_answered_again(data, stub, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(data, out, "--max_samples", "4") == 0
    assert predict(data, out) == 2
    assert "holds predictions already; go on behind them with --resume" in capsys.readouterr().err
    before = lines(out)
    assert predict(data, out, "--resume") == 0
    assert "going on behind 4 of 10 answers" in capsys.readouterr().out
    assert lines(out)[:4] == before
    assert sorted(number for batch in stub for number in batch) == list(range(10))
    assert json.loads((out / "predict_results.json").read_text())["records"] == 10
    count = len(stub)
    assert predict(data, out, "--resume") == 0
    assert len(stub) == count


def test_a_line_that_a_kill_cut_short_is_answered_again_and_the_same_command_goes_on(data, stub, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert predict(data, whole) == predict(data, out) == 0
    (out / "predict_results.json").unlink()
    torn = (out / "generated_predictions.txt").read_bytes()[:-5]
    (out / "generated_predictions.txt").write_bytes(torn)
    assert predict(data, out) == 0
    assert lines(out) == lines(whole)
    assert stub[-1] == [9]


def test_answers_of_another_program_are_gone_on_from(data, stub, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "generated_predictions.txt").write_text('{"predict": "x", "labels": "岭_溪_0"}', encoding="utf-8")
    assert predict(data, out, "--resume") == 0
    assert len(lines(out)) == 10
    assert lines(out)[0] == {"predict": "x", "labels": "岭_溪_0"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"predict": "x", "labels": "y"}\n', "generated_predictions.txt:1: its label is not that of"),
        ('{"predict": "x"}\n', "generated_predictions.txt:1: is no line of labels and predict"),
        ('{"predict": "x", "labels": "岭_溪_0"}\n\n', "generated_predictions.txt:2: is no line of labels and predict"),
    ],
)
def test_other_answers_are_refused_and_stay(data, text, reason, stub, tmp_path, capsys):
    (tmp_path / "generated_predictions.txt").write_text(text, encoding="utf-8")
    assert predict(data, tmp_path, "--resume") == 2
    assert reason in capsys.readouterr().err
    assert (tmp_path / "generated_predictions.txt").read_text(encoding="utf-8") == text


def test_more_answers_than_records_are_refused(data, stub, tmp_path, capsys):
    assert predict(data, tmp_path / "out") == 0
    assert predict(data, tmp_path / "out", "--resume", "--max_samples", "3") == 2
    assert "holds more answers than the 3 records" in capsys.readouterr().err
    assert len(lines(tmp_path / "out")) == 10


@pytest.mark.parametrize("flags", [["--max_new_tokens", "7"], ["--do_sample"], ["--template", "raw"]])
def test_answers_given_in_another_way_are_not_gone_on_from(flags, data, stub, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(data, out, "--max_samples", "4") == 0
    (out / "predict_results.json").unlink()
    for more in ([], ["--resume"]):
        assert predict(data, out, *flags, *more) == 2
        assert "holds answers given in another way (" + flags[0] in capsys.readouterr().err
    assert len(lines(out)) == 4


def test_bad_records_are_left_out_and_listed(data, stub, tmp_path):
    data.write_text("{}\n" + data.read_text(encoding="utf-8"), encoding="utf-8")
    assert predict(data, tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    assert predict(data, tmp_path / "out", "--on_bad_record", "skip") == 0
    assert len(lines(tmp_path / "out")) == 10
    assert (tmp_path / "out" / "rejected.jsonl").read_text().count("\n") == 1


def test_records_from_standard_input(data, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.read_bytes())))
    assert predict("-", tmp_path / "out") == 0
    assert predict(data, tmp_path / "file") == 0
    assert lines(tmp_path / "out") == lines(tmp_path / "file")


def test_one_question_is_answered_on_standard_output_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    question = "找出关系：云川坐落在岭溪境内。"
    [wanted] = glmft.answer(*glmft.load(device="cpu"), [question], max_new_tokens=8)
    assert main(["predict", str(BASE), "--prompt", question, "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(f"{question}\n".encode())))
    assert main(["predict", "--prompt", "-", "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out == f"{wanted}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [b"\xff", b" \n"])
def test_standard_input_without_a_question_is_one_line(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    assert main(["predict", "--prompt", "-"]) == 2
    assert capsys.readouterr().err.startswith("error: --prompt -: standard input ")
