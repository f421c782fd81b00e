"""What was trained is answered as it was trained, from its folder alone, whichever command asks."""

import json

import pytest
import torch

import glmft
from glmft.cli import main
from glmft.models.loading import load_config, load_model, record_of
from glmft.settings.config import TrainConfig
from glmft.settings.recorded import TRAINED_WITH, record_of_settings
from glmft.tokenizers.loading import load_tokenizer
from glmft.tuners import make_tuner

PAIRS = [{"q": "云川", "a": "岭溪"}, {"q": "岭溪" * 30, "a": "云川"}]
COLUMNS = {"prompt_column": "q", "response_column": "a", "source_prefix": "请复述："}
QUESTION = "请复述：云川"


def trained(folder, base, config: TrainConfig):
    """A run's folder, as far as loading goes: what is saved before the first step, moved a little from its start."""
    base_config = load_config(base)
    tuner = make_tuner(config)
    model = tuner.apply(load_model(base_config, base, torch.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder.mkdir()
    about = {**record_of(base_config, base), TRAINED_WITH: record_of_settings(config)}
    tuner.save(model, tuner.state(model), folder, about)
    load_tokenizer(base).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS), encoding="utf-8")
    return path


@pytest.fixture
def predict(data, capsys):
    """Answers of `glmft predict`, and what it printed."""

    def run(folder, *flags: str) -> tuple[list[str], str]:
        capsys.readouterr()
        argv = ["--model_name_or_path", str(folder), "--test_path", str(data), "--max_new_tokens", "4", *flags]
        code = main([*argv, "--device", "cpu"], command="predict", program="predict.py")
        printed = capsys.readouterr()
        assert code == 0, printed.err
        place = folder / "predict"
        if "--output_dir" in flags:
            place = type(folder)(flags[flags.index("--output_dir") + 1])
        lines = (place / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["predict"] for line in lines], printed.out

    return run


def test_predict_goes_by_the_adapters_record_and_says_what_a_flag_overrides(predict, model_folder, tmp_path):
    config = TrainConfig(train_type="freeze", template="raw", max_len=40, **COLUMNS)
    folder = trained(tmp_path / "run", model_folder, config)
    answers, printed = predict(folder)
    assert "as the model was trained: template raw, max_len 40, source_prefix '请复述：', prompt_column q" in printed
    assert "warning: 1 of 2 prompts were cut to 39 tokens; a larger --max_len than 40 keeps more" in printed
    assert "of 2 answers were ended by --max_new_tokens 4" in printed
    model, tokenizer = glmft.load(folder, device="cpu")
    asked = {"max_new_tokens": 4, "batch_size": 2}
    assert glmft.answer(model, tokenizer, [QUESTION, "云川"], **asked) == [answers[0]] * 2  # the prefix stands once
    explicit = {"template": "raw", "max_src_len": 39, "source_prefix": ""}
    assert glmft.answer(model, tokenizer, [QUESTION, "请复述：" + "岭溪" * 30], **explicit, **asked) == answers
    others, printed = predict(folder, "--template", "default", "--output_dir", str(tmp_path / "plain"))
    assert "--template default: overrides template raw, which the model was trained with" in printed
    assert glmft.answer(model, tokenizer, [QUESTION], template="default", **asked) == others[:1] != answers[:1]


def test_a_whole_model_and_a_merged_one_carry_the_same_record(predict, model_folder, tmp_path, capsys):
    config = TrainConfig(template="raw", lora_dim=2, **COLUMNS)
    whole = trained(tmp_path / "whole", model_folder, TrainConfig(train_type="full", template="raw", **COLUMNS))
    lora = trained(tmp_path / "lora", model_folder, config)
    assert main(["--model_dir", str(lora)], command="merge", program="merge_lora.py") == 0
    records = [json.loads((folder / "glmft_training.json").read_text()) for folder in (whole, lora / "merged")]
    assert records[0][TRAINED_WITH] == records[1][TRAINED_WITH] == record_of_settings(config)
    assert [record["family"] for record in records] == ["glm2", "glm2"]
    of_adapter, _ = predict(lora)
    for folder in (whole, lora / "merged"):
        answers, printed = predict(folder)  # into the folder's own predict/
        assert "as the model was trained: template raw" in printed
        assert (answers == of_adapter) == (folder != whole)


def test_the_record_disturbs_no_other_loader(model_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = trained(tmp_path / "whole", model_folder, TrainConfig(train_type="full"))
    model, tokenizer = glmft.load(whole, device="cpu")
    other = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(whole)("云川")["input_ids"] == tokenizer("云川")["input_ids"]
