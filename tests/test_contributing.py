"""The worked examples of CONTRIBUTING.md, run as they stand."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import glmft
from glmft import cli
from glmft.data import formats
from glmft.errors import DataError
from glmft.family import FAMILIES
from glmft.inference import metrics
from glmft.models import loading as model_loading
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.configuration import ChatGLM2Config
from glmft.models.loading import load_config, meta_model
from glmft.settings import config as settings
from glmft.tokenizers import loading as tokenizer_loading
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer

PAGE = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(title: str, number: int = 0) -> str:
    """The code below a heading."""
    section = PAGE.split(f"## Add a {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]


def run_inside(module: types.ModuleType, source: str, **names) -> dict:
    """Run code as if it stood at the end of a module; what it defines."""
    scope = {**vars(module), **names}
    exec(compile(source, "CONTRIBUTING.md", "exec"), scope)
    return scope


@pytest.fixture
def bitfit(monkeypatch):
    module = types.ModuleType("glmft.tuners.bitfit")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(example("tuner"), "bitfit.py", "exec"), module.__dict__)
    [(name, path)] = eval(f"{{{example('tuner', 1)}}}").items()
    monkeypatch.setitem(settings.TUNERS, name, path)
    return module.BitFit


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_tuner_of_one_file_and_one_line_trains_by_its_own_flag(family, bitfit, official_folders, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text('{"instruction": "云川", "output": "岭溪"}\n' * 4, encoding="utf-8")
    out = tmp_path / "out"
    flags = f"--train_path {data} --model_name_or_path {official_folders[family]} --output_dir {out} --max_steps 2"
    flags += " --train_type bitfit --bitfit_module_name query_key_value --dtype fp32 --learning_rate 0.1"
    assert cli.main(["train", *flags.split()]) == 0, capsys.readouterr().err
    assert "query_key_value.bias: 3 x " in capsys.readouterr().out
    assert json.loads((out / "glmft_adapter.json").read_text())["bitfit_module_name"] == "query_key_value"
    base, _ = glmft.load(official_folders[family], dtype="fp32", device="cpu")
    tuned, _ = glmft.load(out, dtype="fp32", device="cpu")
    changed = {name for name, p in tuned.named_parameters() if not torch.equal(p, base.get_parameter(name))}
    assert len(changed) == 3
    assert all(name.endswith("query_key_value.bias") for name in changed)


def test_a_tuner_says_what_it_cannot_train(bitfit, official_folders):
    model = meta_model(load_config(official_folders["glm2"]))
    assert bitfit("mlp").problems(model) == ["--bitfit_module_name mlp: has no bias"]


def test_a_data_format_is_a_function_and_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    run_inside(formats, example("data format"))
    file = tmp_path / "data.json"
    record = {"question": "云？", "choices": ["川", "岭"], "answer": 1}
    file.write_text(json.dumps(record), encoding="utf-8")
    [read], _ = formats.read_records(file)
    assert read.messages == formats.single("云？\n0. 川\n1. 岭", "岭").messages
    file.write_text(json.dumps({**record, "answer": 2}), encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.json:1: 'answer' is 2, not the number of one of the choices"):
        formats.read_records(file)


def test_a_metric_is_a_function_and_its_name(monkeypatch):
    monkeypatch.setattr(metrics, "TEXT_METRICS", list(metrics.TEXT_METRICS))
    run_inside(metrics, example("metric"))
    assert metrics.text_scores(["云 ", "川"], ["云", "岭"])["exact"] == 50


def test_a_command_is_known_to_the_help_and_runs(monkeypatch, tmp_path, capsys):
    from glmft.data.dataset import read_all
    from glmft.settings.sources import find_sources

    monkeypatch.setattr(cli, "COMMANDS", dict(cli.COMMANDS))
    names = {"read_all": read_all, "find_sources": find_sources, "setting": settings.setting}
    run_inside(
        cli,
        "from dataclasses import dataclass\n" + example("command"),
        DataSettings=settings.DataSettings,
        **names,
    )
    (tmp_path / "a.json").write_text('{"instruction": "云", "output": "川"}\n' * 3, encoding="utf-8")
    assert cli.main(["--help"]) == 0
    assert "glmft count    count the records of a file" in capsys.readouterr().out
    assert cli.main(["count", "--data_path", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out == "3 records\n"
    assert cli.main(["count", "--data_path", "nowhere.json"]) == 2


def test_a_model_family_is_its_classes_in_three_tables(monkeypatch, official_folders, tmp_path):
    for table, key in ((FAMILIES, "plain"), (model_loading.MODELS, "plain"), (tokenizer_loading.TOKENIZERS, "plain")):
        monkeypatch.setitem(table, key, None)
    exec(
        compile(example("model family"), "CONTRIBUTING.md", "exec"),
        {
            "FAMILIES": FAMILIES,
            "MODELS": model_loading.MODELS,
            "TOKENIZERS": tokenizer_loading.TOKENIZERS,
            "ChatGLM2Config": ChatGLM2Config,
            "ChatGLM2ForConditionalGeneration": ChatGLM2ForConditionalGeneration,
            "ChatGLM2Tokenizer": ChatGLM2Tokenizer,
        },
    )
    folder = tmp_path / "base"
    folder.mkdir()
    for file in official_folders["glm2"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "glmft_family": "plain"}))
    _, tokenizer = glmft.load(folder, dtype="fp32", device="cpu")
    assert tokenizer.family == "plain"
    assert tokenizer.chat_ids([{"role": "user", "content": "云"}]) == tokenizer("Q: 云\nA:")["input_ids"]
    out, data = tmp_path / "out", tmp_path / "data.jsonl"
    data.write_text('{"instruction": "云川", "output": "岭溪"}\n' * 4, encoding="utf-8")
    flags = f"--train_path {data} --model_name_or_path {folder} --output_dir {out} --max_steps 1 --dtype fp32"
    assert cli.main(["train", *flags.split()]) == 0
    model, tokenizer = glmft.load(out, dtype="fp32", device="cpu")
    assert len(glmft.answer(model, tokenizer, ["云川"], max_new_tokens=2)) == 1
