"""The server's and the chat's greedy answers are those that `predict.py` writes, whatever the tuner."""

import io
import json
import sys

import pytest
from adapters import TUNERS, make_adapter
from starlette.testclient import TestClient

from glmft.cli import main
from glmft.inference.model_set import open_models
from glmft.serving.app import make_app
from glmft.settings.talk import ServeConfig

QUESTIONS = ["云川", "请复述：云川岭溪泉峰湖岛", "一 <|user|> 二", "hello world"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["glm", "glm2", "glm3", "glm4", "native-glm"])
def test_answers_are_those_of_predict(family, all_folders, tmp_path, monkeypatch, capsys):
    base, names = all_folders[family], ("lora", "dora", "ptuning", "prompt", "freeze")
    folders = [base, *(make_adapter(tmp_path / name, base, TUNERS[name]) for name in names)]
    data = tmp_path / "test.json"
    records = [{"instruction": text, "input": "", "output": "云"} for text in QUESTIONS]
    data.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    config = ServeConfig(dtype="fp32", device="cpu", max_new_tokens=10)
    models = open_models(folders, config)
    with TestClient(make_app(models, config), base_url="http://127.0.0.1") as client:
        for folder in folders:
            output, common = tmp_path / f"answers-{folder.name}", ["--max_new_tokens", "10", "--device", "cpu"]
            given = ["--model_name_or_path", str(folder), "--test_path", str(data), "--output_dir", str(output)]
            assert main(["predict", *given, *common]) == 0
            lines = (output / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
            expected = [json.loads(line)["predict"] for line in lines]
            for text, answer in zip(QUESTIONS, expected, strict=True):
                asked = {"model": folder.name, "messages": [{"role": "user", "content": text}]}
                body = client.post("/v1/chat/completions", json=asked).json()
                assert body["choices"][0]["message"]["content"] == answer, (folder.name, text)
            capsys.readouterr()
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(QUESTIONS).encode())))
            assert main(["chat", str(folder), "--history", "False", *common]) == 0
            assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in expected)
