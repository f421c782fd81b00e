"""Files of settings, as users start runs with them."""

import json
import shutil

import pytest
from ranks import ROOT, SLOW, losses, train

import glmft
from glmft.family import FAMILIES

CONFIGS = ROOT / "examples" / "configs"
SMALL = ["--max_steps", "2", "--max_len", "300", "--max_src_len", "200", "--num_train_epochs", "1"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=() if (i + j) % 3 == 0 else SLOW)
        for i, name in enumerate(["lora", "ptuning", "freeze", "prompt", "full"])
        for j, family in enumerate(FAMILIES)
    ],
)
def test_every_ready_file_trains_every_family(name, family, official_folders, uneven, tmp_path):
    flags = ["--config", str(CONFIGS / f"{name}.yaml"), "--train_path", str(uneven), *SMALL]
    flags += ["--model_name_or_path", str(official_folders[family]), "--output_dir", str(tmp_path / "out")]
    codes, printed = train(flags, 1, tmp_path)
    assert codes == [0], printed
    written = json.loads((tmp_path / "out" / "train_config.json").read_text())
    assert written["train_type"] == name
    assert glmft.load(tmp_path / "out")[0] is not None


@pytest.mark.parametrize("name", ["adgen_ptuning", "adgen_ptuning_8", "adgen_lora"])
def test_the_published_recipes_of_adgen_run_on_the_shipped_sample(name, official_folders, tmp_path):
    sample = ROOT / "examples" / "adgen"
    flags = ["--config", str(CONFIGS / f"{name}.yaml"), "--model_name_or_path", str(official_folders["glm2"])]
    flags += ["--train_path", str(sample / "train.json"), "--val_path", str(sample / "dev.json"), "--max_steps", "2"]
    codes, printed = train([*flags, "--output_dir", str(tmp_path / "out")], 1, tmp_path)
    assert codes == [0], printed
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("reference_*.yaml")), ids=lambda p: p.stem)
def test_the_reference_projects_recipes_run(path, official_folders, uneven, tmp_path):
    flags = ["--config", str(path), "--train_path", str(uneven), "--max_steps", "2"]
    flags += ["--model_name_or_path", str(official_folders["glm2"]), "--output_dir", str(tmp_path / "out")]
    if "freeze" in path.stem:  # the test's model has three layers
        flags += ["--freeze_module_name", "layers.2."]
    codes, printed = train(flags, 1, tmp_path)
    assert codes == [0], printed


DEMO = """
data_config:
  train_file: train.json
  val_file: dev.json
  test_file: dev.json
  num_proc: 1
max_input_length: 256
max_output_length: 512
training_args:
  output_dir: {out}
  max_steps: 4
  learning_rate: 5e-5
  per_device_train_batch_size: 4
  dataloader_num_workers: 16
  remove_unused_columns: false
  save_strategy: steps
  save_steps: 2
  log_level: info
  logging_strategy: steps
  logging_steps: 1
  per_device_eval_batch_size: 16
  evaluation_strategy: steps
  eval_steps: 2
  predict_with_generate: true
  generation_config:
    max_new_tokens: 8
  use_cpu: true
{peft}"""
PEFT = {
    "lora": "peft_config:\n  peft_type: LORA\n  task_type: CAUSAL_LM\n  r: 8\n  lora_alpha: 32\n  lora_dropout: 0.1\n",
    "ptuning_v2": "peft_config:\n  peft_type: PREFIX_TUNING\n  task_type: CAUSAL_LM\n  num_virtual_tokens: 16\n",
    "sft": "  deepspeed: ds_zero_3.json\n",
}


@pytest.mark.parametrize("name", ["lora", *(pytest.param(n, marks=SLOW) for n in PEFT if n != "lora")])
def test_the_chatglm3_demos_positional_form_trains_and_resumes(name, official_folders, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    talk = [{"role": "user", "content": "云川"}, {"role": "assistant", "content": "岭溪泉"}]
    (data / "train.json").write_text(json.dumps([{"conversations": talk}] * 9, ensure_ascii=False), encoding="utf-8")
    shutil.copy(data / "train.json", data / "dev.json")
    text = DEMO.format(out=out, peft=PEFT[name])
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    words = [str(data), str(official_folders["glm3"]), str(tmp_path / f"{name}.yaml")]
    codes, printed = train(words, 2, tmp_path)
    assert codes == [0, 0], printed
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert "rouge-l" in printed
    codes, printed = train([*words, "2"], 2, tmp_path)
    assert codes == [0, 0], printed
    assert "step 2/4" not in printed
    assert "step 3/4" in printed
    codes, printed = train([*words, "yes"], 2, tmp_path)
    assert codes == [0, 0], printed
    assert "step 4/4" not in printed


@pytest.mark.parametrize("name", ["lora", pytest.param("ptuning_v2", marks=SLOW), pytest.param("sft", marks=SLOW)])
def test_glm4s_own_files_train_on_dialogues_with_tools(name, official_folders, tmp_path):
    words = [str(ROOT / "examples" / "glm4"), str(official_folders["glm4"]), str(CONFIGS / f"glm4_{name}.yaml")]
    few = ["--max_steps", "2", "--max_new_tokens", "4", "--pre_seq_len", "8", "--output_dir", str(tmp_path / "out")]
    codes, printed = train([*words, *few, "--max_source_length", "4000"], 1, tmp_path)
    assert codes == [0], printed
    assert "8 records read, 8 rows kept, 0 dropped as too long, 0 prompts and 0 answers cut" in printed
    assert glmft.load(tmp_path / "out")[0] is not None


# The five files of the two reference projects that use DeepSpeed, by the keys that they hold.
BUCKETS = {
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "reduce_scatter": True,
    "reduce_bucket_size": 2e8,
}
OVERLAP = {"overlap_comm": True, "contiguous_gradients": True}
STAGE_3 = {
    "stage": 3,
    **OVERLAP,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
AUTO, CPU = {"device": "auto"}, {"device": "cpu", "pin_memory": True}
CHATGLM_FINETUNING = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "steps_per_print": 1,
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 100},
    "bf16": False,
    "gradient_clipping": 1.0,
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"total_num_steps": "auto", "warmup_num_steps": "auto", "warmup_type": "cosine"},
    },
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
}
FINETUNE_DEMO = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
BROUGHT = {
    "ds_zero2_no_offload": CHATGLM_FINETUNING
    | {"zero_optimization": {"stage": 2, **BUCKETS, **OVERLAP, "offload_param": AUTO, "offload_optimizer": AUTO}},
    "ds_zero3_no_offload": CHATGLM_FINETUNING
    | {"zero_optimization": {**STAGE_3, "offload_param": AUTO, "offload_optimizer": AUTO}},
    "ds_zero3_offload": CHATGLM_FINETUNING
    | {"zero_optimization": {**STAGE_3, "offload_param": CPU, "offload_optimizer": CPU}},
    "ds_zero_2": FINETUNE_DEMO | {"zero_optimization": {"stage": 2, **BUCKETS, **OVERLAP}},
    "ds_zero_3": FINETUNE_DEMO | {"zero_optimization": STAGE_3},
}


BRING = ["--max_len", "512", "--per_device_train_batch_size", "2", "--max_steps", "3", "--lora_dropout", "0"]


@pytest.fixture(scope="module")
def plain_losses(uneven, tmp_path_factory) -> list[float]:
    folder = tmp_path_factory.mktemp("plain")
    flags = ["--train_path", str(uneven), *BRING, "--show_loss_step", "1", "--ds_file", "ds_zero0.json"]
    codes, printed = train([*flags, "--output_dir", str(folder / "out")], 2, folder)
    assert codes == [0, 0], printed
    return losses(folder / "out")


@pytest.mark.parametrize("name", BROUGHT)
def test_deepspeed_files_that_users_bring_train_as_they_stand(name, plain_losses, uneven, tmp_path):
    """The flags' learning rate, batches and clipping count, whatever the file says: all give the same losses."""
    path, out = tmp_path / f"{name}.json", tmp_path / "out"
    path.write_text(json.dumps(BROUGHT[name]), encoding="utf-8")
    flags = ["--train_path", str(uneven), *BRING, "--show_loss_step", "1"]
    codes, printed = train([*flags, "--ds_file", str(path), "--output_dir", str(out)], 2, tmp_path)
    assert codes == [0, 0], printed
    assert losses(out) == pytest.approx(plain_losses, rel=1e-5)
    if BROUGHT[name]["fp16"]["enabled"] is True:
        assert f"{name}.json: fp16 -> fp32 (DeepSpeed does not have it on this device)" in printed
        assert f"{name}.json: train_batch_size 32 -> 4 (from the flags)" in printed
    assert f"{name}.json: optimizer is left out: the flags own it" in printed
