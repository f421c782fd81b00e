import dataclasses
import subprocess
import sys

import pytest

from glmft.errors import ConfigError
from glmft.settings.answers import PredictConfig
from glmft.settings.checks import check
from glmft.settings.config import TrainConfig, split_names
from glmft.settings.defaults import DS_ALIASES, find_ds_file, shipped, with_defaults
from glmft.settings.flags import parse_arguments
from glmft.settings.tools import MergeConfig


def parse(*argv: str) -> TrainConfig:
    return parse_arguments(TrainConfig, list(argv), "train.py")


def test_flags_have_the_reference_projects_defaults():
    config = parse()
    assert (config.max_len, config.max_src_len) == (1024, None)  # 256 there, which cuts dialogues
    assert (config.train_type, config.lora_dim, config.lora_alpha, config.lora_dropout) == ("lora", 8, 30, 0.1)
    assert (config.learning_rate, config.weight_decay, config.warmup_ratio) == (1e-3, 0.1, 0.1)
    assert (config.pre_seq_len, config.prefix_projection) == (16, True)
    assert config.ds_file == "ds_zero2_no_offload.json"


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--prefix_projection", "False"], False),
        (["--prefix_projection", "true"], True),
        (["--prefix_projection=False"], False),
        (["--prefix_projection"], True),
        ([], True),
    ],
)
def test_booleans_are_real_booleans(flags, value):
    assert parse(*flags).prefix_projection is value


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], None),
        (["--resume"], "yes"),
        (["--resume", "--seed", "3"], "yes"),
        (["--resume", "latest"], "yes"),
        (["--resume_from_checkpoint", "True"], "yes"),
        (["--resume_from_checkpoint", "False"], None),
        (["--resume", "600"], "600"),
        (["--resume", "checkpoint-600"], "600"),
        (["--resume", "out/a/checkpoint-600/", "--output_dir", "out/a"], "600"),
        (["--resume", "other/checkpoint-600", "--output_dir", "out/a"], "other/checkpoint-600"),
    ],
)
def test_where_to_go_on_is_the_newest_or_a_step(flags, value):
    assert parse(*flags).resume == value


@pytest.mark.parametrize(
    ("flags", "every"),
    [
        ([], 0),
        (["--gradient_checkpointing"], 1),
        (["--gradient_checkpointing", "--seed", "3"], 1),
        (["--gradient_checkpointing", "True"], 1),
        (["--gradient_checkpointing", "False"], 0),
        (["--gradient_checkpointing", "full"], 1),
        (["--gradient_checkpointing", "off"], 0),
        (["--gradient_checkpointing", "every", "2"], 2),
        (["--gradient_checkpointing", "every 3"], 3),
        (["--gradient_checkpointing=4"], 4),
        (["--activation_checkpointing", "2"], 2),
        (["--disable_gradient_checkpointing"], 0),
    ],
)
def test_gradient_checkpointing_is_of_all_layers_of_none_or_of_every_nth(flags, every):
    assert parse(*flags).gradient_checkpointing == every


def test_gradient_checkpointing_of_other_words_is_an_error():
    with pytest.raises(ConfigError, match="--gradient_checkpointing every other: is neither off, full, nor a number"):
        parse("--gradient_checkpointing", "every", "other")
    with pytest.raises(ConfigError, match="--gradient_checkpointing some: is neither"):
        TrainConfig(gradient_checkpointing="some")


def test_a_boolean_that_is_none_is_an_error():
    with pytest.raises(ConfigError, match="'maybe' is neither True nor False"):
        parse("--is_skip", "maybe")


def test_all_is_another_name_of_full():
    assert parse("--train_type", "all").train_type == "full"


def test_an_unknown_flag_names_the_nearest_one():
    with pytest.raises(ConfigError, match="--learning_rte: no such setting; did you mean --learning_rate"):
        parse("--learning_rte", "1e-4")


def test_flags_without_meaning_here_are_accepted_with_one_warning(capsys):
    config = parse("--do_train", "--num_proc", "16", "--save_strategy=steps", "--local_rank", "0", "--seed", "5")
    assert config.seed == 5
    assert capsys.readouterr().out == "warning: --do_train, --save_strategy: without effect here\n"


def test_names_are_split_at_commas_and_freed_of_quotes():
    assert split_names(" 'a', b ,,\"c.d.\" ") == ["a", "b", "c.d."]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("learning_rate", 0.0, "more than 0"),
        ("learning_rate", float("nan"), "more than 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("warmup_ratio", 1.5, "at most 1"),
        ("lora_dropout", -1.0, "at most 1"),
        ("per_device_train_batch_size", 0, "at least 1"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("num_train_epochs", 0, "more than 0"),
        ("max_steps", 0, "at least 1"),
        ("pre_seq_len", 0, "at least 1"),
        ("lora_dim", 0, "at least 1"),
        ("max_src_len", 3, "at least 4"),
    ],
)
def test_values_out_of_range_get_one_line_with_value_and_rule(name, value, rule):
    config = dataclasses.replace(with_defaults(TrainConfig())[0], **{name: value})
    problems = check(config)
    assert len(problems) == 1
    assert problems[0].startswith(f"--{name} {value}")
    assert rule in problems[0]


def test_the_defaults_have_no_problem():
    assert check(with_defaults(TrainConfig())[0]) == []


def test_what_is_not_given_is_filled_in_and_said():
    config, said = with_defaults(TrainConfig(train_type="ptuning"))
    assert config.model_name_or_path == str(shipped("examples/quickstart/base"))
    assert config.output_dir == "output/train-tiny-ptuning-16-0.001"
    assert len(said) == 3


@pytest.mark.parametrize(("path", "name"), [("d/*.jsonl", "data"), ("a.b.json:0.5,c.json", "a"), ("x y.json", "x-y")])
def test_the_output_is_named_after_the_first_of_the_data(path, name):
    config, _ = with_defaults(TrainConfig(train_path=path))
    assert config.output_dir == f"output/{name}-tiny-lora-8-0.001"


def test_what_is_given_is_kept_and_nothing_is_said(tmp_path):
    given = TrainConfig(model_name_or_path="m", train_path="t.json", output_dir=str(tmp_path))
    assert with_defaults(given) == (given, [])


def test_a_deepspeed_file_is_looked_for_as_a_path_then_among_the_shipped_ones(tmp_path, monkeypatch):
    assert find_ds_file("ds_zero3_offload.json") == shipped("ds_configs") / "ds_zero3_offload.json"
    assert find_ds_file("ds_zero0") == shipped("ds_configs") / "ds_zero0.json"
    assert find_ds_file("configs/ds_zero_2.json") == shipped("ds_configs") / "ds_zero2_no_offload.json"
    assert all(find_ds_file(name) == shipped("ds_configs") / there for name, there in DS_ALIASES.items())
    assert parse("--deepspeed", "--deepspeed_config", "zero3").ds_file == "zero3"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_zero0.json").write_text("{}")
    assert find_ds_file("ds_zero0.json").resolve() == tmp_path / "ds_zero0.json"


def test_a_missing_deepspeed_file_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"ds_zero0\.json, .*ds_zero3_offload\.json"):
        find_ds_file("ds_zero7.json")


@pytest.mark.parametrize("script", ["train.py", "predict.py", "merge_lora.py"])
def test_help_names_every_setting_and_imports_nothing_heavy(script):
    kind = {"train.py": TrainConfig, "predict.py": PredictConfig, "merge_lora.py": MergeConfig}[script]
    command = {"train.py": "train", "predict.py": "predict", "merge_lora.py": "merge"}[script]
    code = (
        "import sys; from glmft.cli import main\n"
        f"try: main(['--help'], command={command!r}, program={script!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for field in dataclasses.fields(kind):
        assert "help" not in field.metadata or f"--{field.name}" in done.stdout


@pytest.mark.parametrize(
    ("name", "how"), [("flash_attention_2", "pip install flash-attn"), ("flash_attention_3", "build")]
)
def test_an_attention_library_that_is_not_installed_is_called_so_with_how_to_install_it(name, how, monkeypatch):
    monkeypatch.setattr("glmft.settings.checks.find_spec", lambda module: None)
    [problem] = check(parse("--attn_implementation", name))
    assert problem.startswith(f"--attn_implementation {name}: flash-attn is not installed; {how}")
    monkeypatch.setattr("glmft.settings.checks.find_spec", lambda module: module)
    assert check(parse("--attn_implementation", name)) == []


def test_a_dropout_of_one_which_leaves_nothing_to_learn_is_refused():
    assert check(parse("--lora_dropout", "1")) == [
        "--lora_dropout 1.0: drops all, so that nothing is learned; give less than 1"
    ]
    assert check(parse("--lora_dropout", "0.99")) == []


def test_what_a_pipeline_does_not_go_with_is_told_at_once():
    config = TrainConfig(pipeline_stages=2, cache_frozen_activations=True, torch_compile=True, use_reentrant=True)
    told = [line for line in check(config) if line.startswith("--pipeline_stages 2 with --")]
    assert [line.split()[3].rstrip(":") for line in told] == [
        *("--use_reentrant", "--cache_frozen_activations", "--torch_compile")
    ]
