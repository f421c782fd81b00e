from pathlib import Path

import pytest

from glmft.errors import ConfigError
from glmft.settings.answers import PredictConfig
from glmft.settings.checks import check
from glmft.settings.config import TrainConfig
from glmft.settings.flags import parse_arguments
from glmft.settings.yaml_file import demo_arguments

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "examples" / "configs").glob("*.yaml"))
# As the files of ChatGLM3's finetune_demo are laid out.
DEMO = """
data_config:
  train_file: train.json
  val_file: dev.json
  test_file: dev.json
  num_proc: 16
max_input_length: 256
max_output_length: 512
training_args:
  # comments stay
  output_dir: ./output
  max_steps: 3000
  learning_rate: 5e-5
  per_device_train_batch_size: 4
  dataloader_num_workers: 16
  remove_unused_columns: false
  save_strategy: steps
  save_steps: 500
  log_level: info
  logging_strategy: steps
  logging_steps: 10
  per_device_eval_batch_size: 16
  evaluation_strategy: steps
  eval_steps: 500
  predict_with_generate: true
  generation_config:
    max_new_tokens: 512
  deepspeed: ds_zero_3.json
  use_cpu: true
"""
LORA = "peft_config:\n  peft_type: LORA\n  task_type: CAUSAL_LM\n  r: 8\n  lora_alpha: 32\n  lora_dropout: 0.1\n"
PREFIX = "peft_config:\n  peft_type: PREFIX_TUNING\n  task_type: CAUSAL_LM\n  num_virtual_tokens: 128\n"


@pytest.fixture
def parse(tmp_path):
    def parse_yaml(text: str, *argv: str) -> TrainConfig:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return parse_arguments(TrainConfig, ["--config", str(path), *argv], "train.py")

    return parse_yaml


def test_a_file_gives_settings_and_flags_override_them(parse):
    config = parse(
        "train_type: all\nlearning_rate: 1e-4\nlora_module_name: [dense, mlp]\nis_skip: true\n", "--seed", "7"
    )
    assert (config.train_type, config.learning_rate, config.seed, config.is_skip) == ("full", 1e-4, 7, True)
    assert config.lora_module_name == "dense,mlp"
    assert parse("learning_rate: 1e-4\n", "--learning_rate", "2e-4").learning_rate == 2e-4


def test_aliases_are_names_too(parse):
    config = parse("train_file: a.json\nlogging_steps: 3\ndeepspeed: ds_zero_3.json\n")
    assert (config.train_path, config.show_loss_step, config.ds_file) == ("a.json", 3, "ds_zero_3.json")


def test_names_of_other_projects_do_in_a_file_too(parse):
    config = parse("finetuning_type: lora\nlora_rank: 4\nlora_target: all\ncutoff_len: 300\nbf16: true\nfp16: false\n")
    assert (config.train_type, config.lora_dim, config.lora_module_name) == ("lora", 4, "all-linear")
    assert (config.max_len, config.dtype) == (300, "bf16")


def test_a_file_for_training_serves_other_commands_with_a_line_on_what_it_has_for_training_alone(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("template: raw\nlearning_rate: 1e-4\nlora_rank: 4\nmax_len: 99\n", encoding="utf-8")
    config = parse_arguments(PredictConfig, ["--config", str(path), "--max_len", "100"], "predict.py")
    assert (config.template, config.max_len) == ("raw", 100)
    assert capsys.readouterr().out == "warning: learning_rate, lora_rank: without effect here\n"
    (tmp_path / "demo.yaml").write_text(DEMO + LORA, encoding="utf-8")
    demo = parse_arguments(PredictConfig, ["--config", str(tmp_path / "demo.yaml"), "--data_dir", "d"], "predict.py")
    assert (demo.test_path, demo.max_source_length, demo.max_new_tokens) == ("d/dev.json", 256, 512)
    assert "weight_decay" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("learning_rte: 1e-4\n", "learning_rte: no such setting; did you mean learning_rate?"),
        ("learning_rate: fast\n", "invalid float value: 'fast'"),
        ("a: [1\n", "is no YAML"),
        ("- 1\n", "must hold settings as `name: value`"),
        ("model: {name: x}\n", "model: is a section"),
        (
            "training_args: {learning_rate: 1, warmup: 3}\n",
            "warmup: no such setting; here it is --warmup_ratio or --warmup_steps",
        ),
        ("peft_config: {peft_type: IA3}\n", "peft_type is none of LORA, PREFIX_TUNING"),
        ("quantization_bit: 3\n", "argument --quantization_bit: invalid choice: '3' (choose from"),
        ("!!python/object/apply:os.system ['true']\n", "is no YAML"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_the_nearest_name(text, told, parse):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match=r"--config none.yaml: cannot be read"):
        parse_arguments(TrainConfig, ["--config", "none.yaml"], "train.py")


@pytest.mark.parametrize(("peft", "train_type"), [(LORA, "lora"), (PREFIX, "ptuning"), ("", "full")])
def test_the_demos_files_are_read_as_they_stand(peft, train_type, parse, capsys):
    config = parse(DEMO + peft)
    assert config.train_type == train_type
    assert (config.max_source_length, config.max_target_length) == (256, 512)
    assert (config.max_steps, config.learning_rate, config.per_device_train_batch_size) == (3000, 5e-5, 4)
    assert (config.save_model_step, config.eval_steps, config.show_loss_step) == (500, 500, 10)
    assert (config.predict_with_generate, config.max_new_tokens, config.device) == (True, 512, "cpu")
    assert (config.lr_scheduler_type, config.weight_decay, config.warmup_ratio) == ("linear", 0, 0)
    assert "without effect here" in capsys.readouterr().out
    if train_type == "lora":
        assert (config.lora_dim, config.lora_alpha, config.lora_dropout) == (8, 32, 0.1)
    if train_type == "ptuning":
        assert (config.pre_seq_len, config.prefix_projection) == (128, False)


def test_the_demos_positional_form(tmp_path):
    file = tmp_path / "lora.yaml"
    file.write_text(DEMO + LORA, encoding="utf-8")
    argv = demo_arguments(["data/", "THUDM/chatglm3-6b", str(file), "600", "--seed", "3"])
    config = parse_arguments(TrainConfig, argv, "train.py")
    assert (config.train_path, config.val_path) == ("data/train.json", "data/dev.json")
    assert (config.model_name_or_path, config.resume, config.seed) == ("THUDM/chatglm3-6b", "600", 3)
    assert demo_arguments(["--seed", "3"]) == ["--seed", "3"]
    assert "--resume" not in demo_arguments(["data/", "model", "lora.yaml"])


@pytest.mark.parametrize(
    "words", [["data"], ["data", "model"], ["data", "model", "x.json"], ["a", "b", "c.yaml", "d", "e"]]
)
def test_other_words_are_an_error_that_shows_the_form(words):
    with pytest.raises(ConfigError, match=r"give flags, or DATA_DIR MODEL CONFIG.yaml \[yes\|STEP\]"):
        demo_arguments(words)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_file_is_valid(path):
    assert check(parse_arguments(TrainConfig, ["--config", str(path)], "train.py")) == []


@pytest.mark.parametrize(("combine", "loss_on"), [("True", "combined"), ("false", "all")])
def test_glm4s_demo_says_by_combine_what_is_learned(combine, loss_on, parse):
    assert parse(f"combine: {combine}\nfreezeV: True\n").loss_on == loss_on
    with pytest.raises(ConfigError, match="combine is 'some'; give True or False"):
        parse("combine: some\n")
