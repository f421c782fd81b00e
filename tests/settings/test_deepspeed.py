"""The precedence rule for DeepSpeed files: flags own batches, optimizer and schedule; the file owns the engine."""

import json

import pytest

from glmft.errors import ConfigError
from glmft.settings.config import TrainConfig
from glmft.settings.deepspeed import resolve
from glmft.settings.defaults import shipped

# The two kinds of files that users of the reference projects bring.
CHATGLM_FINETUNING = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "steps_per_print": 1,
    "zero_optimization": {
        "stage": 2,
        "offload_param": {"device": "auto"},
        "offload_optimizer": {"device": "auto"},
    },
    "bf16": False,
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 100},
    "gradient_clipping": 1.0,
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_type": "cosine"}},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
}
FINETUNE_DEMO = {
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto", "reduce_bucket_size": "auto"},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
}
FLAGS = TrainConfig(per_device_train_batch_size=2, gradient_accumulation_steps=3)


def resolved(given: dict, tmp_path, flags: TrainConfig = FLAGS, dtype: str = "fp32") -> tuple[dict, list[str]]:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    return resolved_file(path, flags, 4, dtype)


def resolved_file(*args) -> tuple[dict, list[str]]:
    resolved = resolve(*args)
    return resolved.config, resolved.messages


def test_batch_sizes_come_from_the_flags_and_what_the_file_says_is_named(tmp_path):
    config, said = resolved(CHATGLM_FINETUNING, tmp_path)
    assert config["train_batch_size"] == 2 * 3 * 4
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 3
    assert "ds.json: train_batch_size 32 -> 24 (from the flags)" in said
    assert "ds.json: train_micro_batch_size_per_gpu 4 -> 2 (from the flags)" in said


def test_optimizer_and_scheduler_of_the_file_are_left_out_with_a_line(tmp_path):
    config, said = resolved(CHATGLM_FINETUNING, tmp_path)
    assert not {"optimizer", "scheduler"} & set(config)
    assert sum("the flags own it" in line for line in said) == 2


def test_auto_offload_is_no_offload_and_a_named_device_stays(tmp_path):
    assert set(resolved(CHATGLM_FINETUNING, tmp_path)[0]["zero_optimization"]) == {"stage"}
    kept = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    assert resolved(kept, tmp_path)[0]["zero_optimization"]["offload_param"] == {"device": "cpu"}


def test_no_auto_is_left(tmp_path):
    assert "auto" not in json.dumps(resolved(FINETUNE_DEMO, tmp_path)[0])


def test_a_file_of_autos_is_filled_in_silently(tmp_path):
    config, said = resolved({k: v for k, v in FINETUNE_DEMO.items() if k != "optimizer"}, tmp_path)
    assert said == []
    assert config["zero_optimization"] == {"stage": 3}


def test_the_number_format_is_that_of_the_run(tmp_path):
    config, said = resolved(CHATGLM_FINETUNING, tmp_path)
    assert "fp16" not in config
    assert "ds.json: fp16 -> fp32 (DeepSpeed does not have it on this device)" in said
    config, said = resolved(CHATGLM_FINETUNING, tmp_path, dtype="fp16")
    assert config["fp16"] == {"enabled": True, "loss_scale": 0, "loss_scale_window": 100}
    assert not any("decides" in line for line in said)


@pytest.mark.parametrize(
    ("flag", "file", "clipping"), [(None, None, 1.0), (None, "auto", 1.0), (None, 0.5, 0.5), (0.0, 0.5, 0.0)]
)
def test_clipping_is_the_flag_else_the_file_else_one(flag, file, clipping, tmp_path):
    given = {} if file is None else {"gradient_clipping": file}
    assert resolved(given, tmp_path, TrainConfig(max_grad_norm=flag))[0]["gradient_clipping"] == clipping


def test_an_unknown_key_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match="'zero_optimisation' is no DeepSpeed key; did you mean 'zero_optimization'"):
        resolved({"zero_optimisation": {"stage": 2}}, tmp_path)


@pytest.mark.parametrize("zero", [{"stage": 4}, {"stage": "auto"}, 2])
def test_a_stage_that_does_not_exist_is_an_error(zero, tmp_path):
    with pytest.raises(ConfigError, match="stage 0, 1, 2 or 3"):
        resolved({"zero_optimization": zero}, tmp_path)


def test_buckets_left_open_follow_the_models_width(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(FINETUNE_DEMO), encoding="utf-8")
    zero = resolve(path, FLAGS, 4, "fp32", hidden_size=4096).config["zero_optimization"]
    assert zero == {"stage": 3, "stage3_prefetch_bucket_size": 15099494, "reduce_bucket_size": 16777216}


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_file_that_is_no_json_object_is_an_error(text, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        resolve(path, FLAGS, 1, "fp32")


@pytest.mark.parametrize("path", sorted(shipped("ds_configs").glob("*.json")), ids=lambda p: p.name)
def test_shipped_files_resolve_without_a_word_and_need_no_compiler(path):
    config, said = resolved_file(path, FLAGS, 2, "bf16")
    assert said == []
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert str(config["zero_optimization"]["stage"]) in path.name
