"""Names that users bring from other projects (LLaMA-Factory, ms-swift, peft, transformers), and what they are here.

Three tables: names of a setting, values of a setting, and names that mean nothing here with what to give in their
place. Where two settings share an alias, the first of them that a command has gets it.
"""

from collections.abc import Collection, Iterable

from glmft.errors import hints

ALIASES: dict[str, tuple[str, ...]] = {
    name: tuple(text.split())
    for name, text in {
        "ori_model_dir": "base_model_path base_model base_model_name_or_path model_name_or_path model model_path",
        "model_dir": "adapter_name_or_path adapter_path adapters adapter peft_model lora_path ckpt_dir checkpoint_dir",
        "model_name_or_path": "model model_path model_dir model_id model_id_or_path pretrained_model_name_or_path",
        "base_model_path": "base_model base_model_name_or_path ori_model_dir",
        "dtype": "torch_dtype precision compute_dtype",
        "bits": "quantization_bit quant_bits",
        "quantization_bit": "bits quant_bits quant_bit",
        "attn_implementation": "attn_impl flash_attn",
        "train_path": "train_file train_data train_dataset train_data_path train_files data dataset data_path "
        "dataset_path data_files",
        "val_path": "validation_file val_file val_data val_dataset validation_path eval_dataset eval_file eval_path "
        "eval_data eval_data_path dev_file valid_file",
        "test_path": "test_file test_data test_dataset data dataset data_path dataset_path eval_dataset eval_file",
        "data_path": "data dataset dataset_path train_path train_file",
        "val_ratio": "val_size val_set_size split_dataset_ratio",
        "num_proc": "preprocessing_num_workers dataset_num_proc",
        "prompt_column": "query_column question_column input_column source_column",
        "response_column": "answer_column output_column summary_column target_column",
        "max_len": "cutoff_len max_length max_seq_length max_seq_len model_max_length seq_len",
        "max_src_len": "max_prompt_length max_prompt_len",
        "max_source_length": "max_input_length",
        "max_target_length": "max_output_length",
        "max_new_tokens": "generation_config.max_new_tokens",
        "packing": "neat_packing",
        "per_device_train_batch_size": "batch_size train_batch_size per_device_batch_size micro_batch_size "
        "per_gpu_train_batch_size train_micro_batch_size_per_gpu",
        "per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size batch_size per_device_batch_size",
        "gradient_accumulation_steps": "grad_accum_steps grad_accum gradient_accumulation accumulation_steps",
        "learning_rate": "lr",
        "adam_beta1": "beta1",
        "adam_beta2": "beta2",
        "max_grad_norm": "gradient_clipping grad_clip clip_grad_norm gradient_clip_val",
        "warmup_ratio": "warmup_proportion",
        "warmup_steps": "num_warmup_steps",
        "lr_scheduler_type": "lr_scheduler lr_schedule",
        "min_lr_ratio": "min_lr_rate",
        "num_train_epochs": "epochs num_epochs epoch train_epochs n_epochs max_epochs",
        "max_steps": "max_train_steps total_steps train_steps num_train_steps num_training_steps train_iters",
        "eval_steps": "eval_interval evaluation_steps eval_every val_steps",
        "show_loss_step": "logging_steps log_interval log_steps log_every_n_steps",
        "save_model_step": "save_steps save_interval save_every checkpointing_steps",
        "save_total_limit": "checkpoints_total_limit keep_last_n_checkpoints",
        "output_dir": "output output_path out_dir save_dir save_path export_dir",
        "resume": "resume_from_checkpoint resume_from",
        "seed": "random_seed",
        "gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing enable_activation_checkpointing",
        "ds_file": "deepspeed deepspeed_config ds_config",
        "pipeline_stages": "pipeline_parallel_size pipeline_model_parallel_size pipe_parallel_size num_stages pp_size",
        "rank_timeout": "ddp_timeout",
        "train_type": "finetuning_type tuner_type sft_type tuner peft_type",
        "lora_dim": "lora_rank lora_r r rank",
        "lora_module_name": "lora_target target_modules lora_target_modules lora_modules",
        "modules_to_save": "additional_target",
        "loraplus_lr_ratio": "lorap_lr_ratio",
        "trainable_dtype": "lora_dtype",
        "freeze_last_n": "freeze_trainable_layers",
        "pre_seq_len": "num_virtual_tokens prefix_length prefix_len",
        "config": "config_file config_path",
    }.items()
}

# What a flag with a yes or no of other projects is here, if it says yes.
SWITCHES: dict[str, tuple[str, str]] = {
    "bf16": ("dtype", "bf16"),
    "fp16": ("dtype", "fp16"),
    "fp32": ("dtype", "fp32"),
    "no_cuda": ("device", "cpu"),
    "pissa_init": ("init_lora_weights", "pissa"),
    "mask_history": ("loss_on", "last"),
    "use_flash_attn": ("attn_implementation", "flash_attention_2"),
    "use_lora": ("train_type", "lora"),
    "use_qlora": ("quantization_bit", "nf4"),
    "disable_gradient_checkpointing": ("gradient_checkpointing", "False"),
}

# Settings of other projects that are as here with these values, and no settings here.
ALREADY: dict[str, tuple[str, ...]] = {
    "stage": ("sft",),
    "optim": ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"),
    "bias": ("none",),
    "lora_bias": ("none",),
    "train_on_prompt": ("False", "false"),
    "train_on_inputs": ("False", "false"),
    "load_in_4bit": ("False", "false"),
    "load_in_8bit": ("False", "false"),
    "push_to_hub": ("False", "false"),
    "use_wandb": ("False", "false"),
}

VALUES: dict[str, dict[str, str]] = {
    "dtype": {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"},
    "trainable_dtype": {"bfloat16": "bf16", "float32": "fp32"},
    "device": {"gpu": "cuda", "cuda:0": "cuda"},
    "attn_implementation": {
        "fa2": "flash_attention_2",
        "fa3": "flash_attention_3",
        "flash_attn": "flash_attention_2",
        "flash_attention": "flash_attention_2",
        "auto": "sdpa",
        "disabled": "eager",
    },
    "lr_scheduler_type": {
        "constant_with_warmup": "constant",
        "cosine_with_min_lr": "cosine",
        "linear_with_warmup": "linear",
    },
    "lora_module_name": {"all": "all-linear", "all_linear": "all-linear", "ALL": "all-linear"},
    "train_type": {
        "all": "full",
        "p-tuning": "ptuning",
        "p-tuning-v2": "ptuning",
        "p_tuning_v2": "ptuning",
        "ptuning_v2": "ptuning",
        "prefix": "ptuning",
        "prefix_tuning": "ptuning",
        "prefix-tuning": "ptuning",
        "prompt_tuning": "prompt",
        "prompt-tuning": "prompt",
        "PREFIX_TUNING": "ptuning",
        "PROMPT_TUNING": "prompt",
        "LORA": "lora",
    },
    "quantization_bit": {"int4": "4", "int8": "8"},
    "bits": {"int4": "4", "int8": "8"},
}

# Values that are no settings of ours, by what stands in them, and what was meant.
_CHATS = dict.fromkeys(("glm", "llama", "qwen", "alpaca", "chat", "auto"), "default")
MEANT_VALUES: dict[str, dict[str, str]] = {
    "mode": {
        "chatglm3": "glm3",
        "glm-3": "glm3",
        "chatglm2": "glm2",
        "glm-2": "glm2",
        "codegeex2": "glm2",
        "chatglm4": "glm4",
        "glm-4": "glm4",
        "glm-z1": "glm4",
        "chatglm": "glm",
        "glm1": "glm",
        "glm-6b": "glm",
    },
    "template": {"plain": "raw", "none": "raw", "empty": "raw", "completion": "raw", **_CHATS},
}

MEANINGS: dict[str, str] = {
    "load_in_4bit": "here it is --quantization_bit nf4; 4 takes integers, as the official INT4 folders do",
    "load_in_8bit": "here it is --quantization_bit 8",
    "quantization_method": "here --quantization_bit says it: 8 or 4 (integers), or nf4 (bitsandbytes)",
    "quant_method": "here --quantization_bit says it: 8 or 4 (integers), or nf4 (bitsandbytes)",
    "bnb_4bit_quant_type": "here --quantization_bit nf4 says it",
    "double_quantization": "leave it out: --quantization_bit nf4 always does it",
    "adapter_name_or_path": "here the adapter's folder is the --model_name_or_path; it knows its base",
    "adapters": "here the adapter's folder is the --model_name_or_path; it knows its base",
    "lora_path": "here the adapter's folder is the --model_name_or_path; it knows its base",
    "peft_model": "here the adapter's folder is the --model_name_or_path; it knows its base",
    "lora_checkpoint": "here the adapter's folder is the --model_name_or_path; it knows its base",
    "stage": "here is supervised fine-tuning alone; leave it out",
    "optim": "here is AdamW alone; leave it out",
    "optimizer": "here is AdamW alone; leave it out",
    "train_on_prompt": "here --loss_on says what is learned; a prompt is not",
    "train_on_inputs": "here --loss_on says what is learned; a prompt is not",
    "model_type": "here --mode names the family: glm, glm2, glm3 or glm4",
    "adam_epsilon": "it is 1e-8 here; leave it out",
    "gradient_checkpointing_kwargs": "here it is --use_reentrant",
    "loss_scale": "here --loss_on says what is learned of a conversation: flagged, all, last",
    "max_samples": "here all rows are trained on; give a smaller file, or --max_steps",
    "max_train_samples": "here all rows are trained on; give a smaller file, or --max_steps",
    "max_eval_samples": "here --val_ratio or a smaller --val_path says it",
    "truncation_strategy": "here --is_skip drops what is too long, and without it that is cut",
    "dataset_dir": "here --train_path takes the paths of files and folders",
    "load_best_model_at_end": "here --save_best METRIC lets the link best lead to the best checkpoint",
    "metric_for_best_model": "here --save_best names the metric: eval_loss, rouge-1, rouge-2, rouge-l, bleu-4, f1",
    "generation_max_length": "here --max_new_tokens is the length of an answer",
    "max_completion_length": "here --max_new_tokens is the length of an answer",
    "encoder_hidden_size": "here it is --prefix_hidden_size (ptuning) or --prompt_hidden_size (prompt)",
    "lora_bias": "leave it out: biases are not trained with LoRA",
    "bias": "leave it out: biases are not trained with LoRA",
    "init_lora": "here it is --init_lora_weights",
    "freeze_trainable_modules": "here it is --freeze_part all|attention|mlp",
    "freeze_layers": "here --freeze_last_n says how many last layers train",
    "unfreeze_layers": "here it is --freeze_last_n or --freeze_module_name",
    "use_wandb": "here it is --report_to wandb",
    "use_swanlab": "here it is --report_to swanlab",
    "lr_scheduler_kwargs": "here the floor is --min_lr_ratio",
    "warmup": "here it is --warmup_ratio or --warmup_steps",
    "num_gpus": "the launcher takes it: deepspeed --num_gpus N train.py …",
    "gpus": "the launcher takes it: deepspeed --include localhost:0,1 train.py …",
    "gpu_ids": "the launcher takes it: deepspeed --include localhost:0,1 train.py …",
    "nproc_per_node": "the launcher takes it: torchrun --nproc_per_node N train.py …",
    "master_port": "the launcher takes it: deepspeed --master_port PORT train.py …",
    "zero_stage": "here --ds_file names a DeepSpeed file, such as ds_zero3_no_offload.json",
    "offload": "here --ds_file names a DeepSpeed file, such as ds_zero2_offload.json",
    "fsdp": "here is DeepSpeed: --ds_file ds_zero3_no_offload.json splits the weights too",
    "temperature": "it is one of predict; while training answers are greedy",
    "top_p": "it is one of predict; while training answers are greedy",
    "top_k": "it is one of predict; while training answers are greedy",
    "do_sample": "it is one of predict; while training answers are greedy",
    "system": "give it in the records: messages of the role system",
    "push_to_hub": "nothing leaves this machine; leave it out",
    "compute_type": "here it is --dtype bf16 or fp16",
    "pure_bf16": "here it is --dtype bf16 --trainable_dtype bf16",
    "mixed_precision": "here it is --dtype bf16 or fp16",
}


def names_of(settings: Iterable[str]) -> dict[str, str]:
    """Each name that a command takes, without dashes, and the setting that it means."""
    own = list(settings)
    names = {name: name for name in own}
    for name, aliases in ALIASES.items():
        names |= {alias: name for alias in aliases if name in own and alias not in names}
    return names


def aliases_of(setting: str, names: dict[str, str]) -> list[str]:
    return [alias for alias, name in names.items() if name == setting and alias != setting]


def unknown_lines(
    unknown: list[str], names: Collection[str], of_training: Collection[str] = (), dashes: str = "--"
) -> list[str]:
    """A line for each name that is no setting: what it means here, else whose it is, else the nearest name.

    Args:
        names: those of the command.
        of_training: those of training.
        dashes: what stands before a name where it was given.
    """
    lines = []
    for name, near in zip(unknown, hints(unknown, [*names, *SWITCHES], lambda name: dashes + name), strict=True):
        meaning = f"; {MEANINGS[name]}" if name in MEANINGS else "; it is one of train" if name in of_training else near
        lines.append(f"{dashes}{name}: no such setting{meaning}")
    return lines


def meant_value(setting: str, value: str, choices: Iterable[str]) -> str:
    """A hint at the choice that another value stands for, or is closest to."""
    lowered = value.lower()
    meant = next((ours for part, ours in MEANT_VALUES.get(setting, {}).items() if part in lowered), None)
    return f"; did you mean {meant}?" if meant else hints([value], map(str, choices))[0]
