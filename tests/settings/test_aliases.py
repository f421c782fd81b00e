"""What people type: names and values of other projects, and hints by meaning."""

import dataclasses
from pathlib import Path

import pytest

from glmft.errors import ConfigError
from glmft.settings.aliases import ALIASES, MEANINGS, SWITCHES, VALUES, names_of
from glmft.settings.answers import PredictConfig, ScoreConfig
from glmft.settings.checks import check
from glmft.settings.compare import CompareConfig
from glmft.settings.config import TrainConfig
from glmft.settings.defaults import with_defaults
from glmft.settings.flags import parse_arguments
from glmft.settings.talk import ChatConfig, ServeConfig
from glmft.settings.tools import ExportConfig, InspectConfig, MergeConfig, QuantizeConfig

KINDS = (
    *(TrainConfig, PredictConfig, InspectConfig, MergeConfig, ExportConfig, QuantizeConfig),
    *(ScoreConfig, CompareConfig, ChatConfig, ServeConfig),
)
# A value for settings that do not take the text "3"; the first choice is taken for those with choices.
SAMPLES = {"val_ratio": "0.3", "config": None}


def fields_of(kind: type) -> dict[str, dataclasses.Field]:
    return {f.name: f for f in dataclasses.fields(kind) if "help" in f.metadata}


def cases() -> list:
    given = []
    for kind in KINDS:
        names = names_of(fields_of(kind))
        given += [(kind, alias, name) for alias, name in names.items() if alias != name and name != "config"]
    return given


def sample(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    return str(choices[-1]) if choices else SAMPLES.get(field.name, "True" if field.type == "bool" else "3")


def parse(kind: type, *argv: str):
    return parse_arguments(kind, list(argv), "glmft")


@pytest.mark.parametrize(("kind", "alias", "name"), cases())
def test_an_alias_sets_what_its_setting_sets(kind, alias, name):
    value = "true" if fields_of(kind)[name].type is bool else sample(fields_of(kind)[name])
    assert parse(kind, f"--{alias}", value) == parse(kind, f"--{name}", value) != parse(kind)


def test_every_alias_of_the_table_is_that_of_a_command():
    used = {(name, alias) for kind in KINDS for alias, name in names_of(fields_of(kind)).items()}
    assert {(name, alias) for name, aliases in ALIASES.items() for alias in aliases} <= used


def test_names_that_users_of_other_projects_type():
    """LLaMA-Factory, ms-swift, peft, transformers, and the first thing that comes to mind."""
    argv = "--model m --dataset a.json b.json --finetuning_type lora --lora_rank 4 --lora_alpha 8 --target_modules q v"
    argv += " --cutoff_len 99 --lr 1e-4 --epochs 2.5 --train_batch_size 3 --bf16 --eval_steps 0.1 --warmup-steps 7"
    config = parse(TrainConfig, *argv.split())
    assert (config.model_name_or_path, config.train_path) == ("m", "a.json,b.json")
    assert (config.train_type, config.lora_dim, config.lora_alpha, config.lora_module_name) == ("lora", 4, 8, "q,v")
    assert (config.max_len, config.learning_rate, config.num_train_epochs) == (99, 1e-4, 2.5)
    assert (config.per_device_train_batch_size, config.dtype) == (3, "bf16")
    assert (config.eval_steps, config.warmup_steps) == (0.1, 7)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_sets_its_setting_where_it_says_yes(name):
    setting, value = SWITCHES[name]
    expected = parse(TrainConfig, f"--{setting}", value)
    for argv in ([f"--{name}"], [f"--{name}", "True"], [f"--{name}=true"], ["--seed", "1234", f"--{name}"]):
        assert parse(TrainConfig, *argv) == expected
    assert parse(TrainConfig, f"--{name}", "False") == parse(TrainConfig)
    with pytest.raises(ConfigError, match=f"--{name}: 'maybe' is neither True nor False"):
        parse(TrainConfig, f"--{name}=maybe")


@pytest.mark.parametrize(("name", "given"), [(n, g) for n, values in VALUES.items() for g in values])
def test_other_names_of_a_value_mean_the_same(name, given):
    kind = QuantizeConfig if name == "bits" else TrainConfig
    assert parse(kind, f"--{name}", given) == parse(kind, f"--{name}", VALUES[name][given])


@pytest.mark.parametrize("name", MEANINGS)
def test_what_has_another_name_and_meaning_here_is_hinted_at_by_meaning(name):
    lacking = next(kind for kind in KINDS if name not in names_of(fields_of(kind)))
    with pytest.raises(ConfigError) as error:
        parse(lacking, f"--{name}", "1")
    assert error.value.problems == [f"--{name}: no such setting; {MEANINGS[name]}; see glmft --help"]


def test_the_flags_in_hints_exist():
    """A hint that names a flag names one of training, or what a launcher takes."""
    there = {*fields_of(TrainConfig), "num_gpus", "nproc_per_node", "master_port", "include"}
    named = {word[2:].strip(",;:") for text in MEANINGS.values() for word in text.split() if word.startswith("--")}
    assert named <= there


def test_a_setting_of_training_is_called_so_elsewhere():
    with pytest.raises(ConfigError, match="--lora_rank: no such setting; it is one of train;"):
        parse(PredictConfig, "--lora_rank", "8")


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("mode", "chatglm2", "glm2"),
        ("mode", "ChatGLM3-6B", "glm3"),
        ("mode", "chatglm-6b", "glm"),
        ("mode", "glm-4-9b", "glm4"),
        ("mode", "glm5", "glm"),
        ("template", "chatglm3", "default"),
        ("dtype", "fp23", "fp32"),
    ],
)
def test_a_value_that_is_no_choice_is_hinted_at_by_meaning(name, value, meant):
    with pytest.raises(ConfigError, match=rf"argument --{name}: invalid choice: '{value}' .*; did you mean {meant}"):
        parse(TrainConfig, f"--{name}", value)


@pytest.mark.parametrize("name", ["eval_steps", "show_loss_step", "save_model_step", "warmup_steps"])
def test_an_interval_is_a_number_of_steps_or_a_share(name):
    fields = dict.fromkeys(("val_ratio",), 0.1)
    for value, problems in ((0.25, 0), (20, 0), (20.0, 0), (1.5, 1), (-1, 1)):
        config = dataclasses.replace(with_defaults(TrainConfig())[0], **{name: value}, **fields)
        assert len(check(config)) == problems, value


@pytest.mark.parametrize("page", ["settings.md", "settings_zh.md"])
def test_the_page_lists_every_name(page):
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| `"): line.split(" | ")[1] for line in text.splitlines() if " | " in line}
    assert all(rows[name] == f"{' '.join(f'`{alias}`' for alias in aliases)} |" for name, aliases in ALIASES.items())
    assert all(rows[f"--{name}"] == f"`--{setting} {value}` |" for name, (setting, value) in SWITCHES.items())
    for setting, values in VALUES.items():
        assert all(f"`{other}`" in rows[f"--{setting} {ours}"] for other, ours in values.items())
