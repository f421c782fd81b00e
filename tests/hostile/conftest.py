"""Good folders and files, made once, which the tests damage in copies; and a module that must never be imported."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from glmft.family import RECORD_JSON
from glmft.settings.defaults import shipped
from glmft.settings.recorded import TRAINED_WITH, record_of_settings

EVIL = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\ndef run(*a, **k): pass\nLinear = run\n"
RECORD = {"instruction": "请复述：", "input": "云川", "output": "云川"}
DIALOGUE = {
    "tools": [{"name": "track", "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}}}],
    "conversations": [
        {"role": "system", "content": "云"},
        {"role": "user", "content": "川"},
        {"role": "tool", "name": "track", "parameters": {"symbol": "10111"}, "observation": {"result": 7}},
        {"role": "assistant", "content": "岭", "loss": True},
    ],
}
CALLS = {
    "messages": [
        {"role": "user", "content": "川"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": [1, {"b": 2}]}'}}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "岭"},
    ]
}
RECORDS = [RECORD, {"content": "云", "summary": "川", "history": [["问", "答"]]}, DIALOGUE, CALLS]


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """`base`, one adapter of each tuner and one of peft's making, and `data.json`; all of it works."""
    from glmft.models.loading import fingerprint, load_config, load_model
    from glmft.settings.config import TrainConfig
    from glmft.tuners import make_tuner

    root = tmp_path_factory.mktemp("good")
    base = root / "base"
    shutil.copytree(shipped("examples/quickstart/base"), base)
    (base / "special_tokens_map.json").write_text(
        '{"eos_token": "</s>", "unk_token": {"content": "<unk>", "lstrip": false}}'
    )
    (base / "added_tokens.json").write_text("{}")
    about = {"family": "glm2", "base_model_name_or_path": "../base", "base_fingerprint": fingerprint(base)}
    about |= {TRAINED_WITH: record_of_settings(TrainConfig(max_src_len=200, prompt_column="content"))}
    (base / RECORD_JSON).write_text(json.dumps({"train_type": "full", **about}))
    settings = {"lora": {}, "ptuning": {"pre_seq_len": 4}, "prompt": {"pre_seq_len": 4}, "freeze": {"freeze_last_n": 1}}
    for train_type, given in settings.items():
        tuner = make_tuner(TrainConfig(train_type=train_type, **given))
        model = tuner.apply(load_model(load_config(base), base, torch.float32))
        folder = root / train_type
        folder.mkdir()
        tuner.save(model, tuner.state(model), folder, about)
    shutil.copytree(root / "lora", root / "peft")
    (root / "peft" / "glmft_adapter.json").unlink()
    (root / "data.json").write_text((json.dumps(RECORD, ensure_ascii=False) + "\n") * 4, encoding="utf-8")
    (root / "evil").mkdir()
    (root / "evil" / "canary.py").write_text(EVIL)
    return root


@pytest.fixture
def place(good, tmp_path, monkeypatch) -> Path:
    """An own copy of everything, in which the process works, with a module `canary` that can be imported."""
    copied = tmp_path / "place"
    shutil.copytree(good, copied)
    monkeypatch.chdir(copied)
    monkeypatch.setattr(sys, "path", [str(copied), str(copied / "evil"), *sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield copied
    assert "canary" not in sys.modules
    assert not (copied / "evil" / "executed").exists()


@pytest.fixture
def no_training(monkeypatch):
    """Training stops, with an error of its own, where the weights would be read: all checks have passed then."""
    from glmft.commands import train
    from glmft.errors import GlmftError

    class Begin(GlmftError):
        exit_code = 0

    def stop(*_):
        raise Begin("here training would begin")

    monkeypatch.setattr(train, "prepare_model", stop)


def changed(path: Path, text: str | bytes) -> None:
    """Write a file anew, whatever stood there."""
    path.unlink(missing_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


def as_yaml(value: dict) -> str:
    return yaml.safe_dump(value, allow_unicode=True)


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
