"""Run folders and predictions as commands leave them, without weights."""

import json
from pathlib import Path

# In the form in which the embedded base was taught.
QUESTION = "你现在是一个信息抽取模型，请抽取文本中的三元组，内部用_连接，之间用\\n分割。文本：豹虹是敏勇的一个零件。"
SECRET = "nobody-must-read-this"


def make_run(folder: Path, steps: int = 5, **settings) -> Path:
    """A run folder as training leaves it, without weights."""
    (folder / "checkpoint-4").mkdir(parents=True)
    (folder / "train_config.json").write_text(json.dumps({"train_type": "lora", "max_steps": 9, **settings}))
    lines = [
        {"step": step, "loss": 3.0 / step, "learning_rate": 1e-3, "grad_norm": 1.5, "tokens_per_second": 100.0}
        for step in range(1, steps + 1)
    ]
    lines.insert(4, {"step": 4, "eval_loss": 0.9, "rouge-1": 40.0, "f1": 0.25})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "trained_parameters.txt").write_text("what trains:\n  lora_A: 4 x [8, 128] float32\n")
    (folder / "checkpoint-4" / "trainer_state.json").write_text('{"step": 4, "total_steps": 8}')
    return folder


def make_predictions(folder: Path, rows: list[tuple[str, str]]) -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps({"labels": label, "predict": answer}, ensure_ascii=False) + "\n" for label, answer in rows]
    (folder / "generated_predictions.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "predict_results.json").write_text('{"records": 2, "predict_rouge-1": 50.0, "triple": {"f1": 0.5}}')
    return folder
