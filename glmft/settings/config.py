"""Every setting of glmft, once: a dataclass field is a flag, its help, its unit and its default.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from glmft.family import FAMILIES, QUANTISATIONS
from glmft.settings.aliases import VALUES
from glmft.settings.hardware import HardwareSettings, every_nth_layer
from glmft.settings.setting import LONG, WIDE, setting

# The ways to train, and the class of each: to add one, write its file and a line here.
TUNERS = {
    "full": "glmft.tuners.full.Full",
    "freeze": "glmft.tuners.freeze.Freeze",
    "ptuning": "glmft.tuners.prefix.Prefix",
    "prompt": "glmft.tuners.prompt.Prompt",
    "lora": "glmft.tuners.lora.Lora",
}
TEMPLATES = ("default", "reference", "raw")
DATA_FORMATS = (
    *("auto", "triples", "pairs", "query", "prompt", "question"),
    *("conversations", "messages", "sharegpt", "text"),
)
WATCHED = ("eval_loss", "rouge-1", "rouge-2", "rouge-l", "bleu-4", "bleu-4-words", "exact-match", "f1")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(kw_only=True)  # so that a command's own settings keep their places
class FileSettings:
    """Where settings may stand beside flags."""

    title: ClassVar[str] = "file of settings"

    config: str | None = setting(
        None, "YAML file of settings by the names here; flags override it. A file of ChatGLM3's demo does as it stands"
    )
    data_dir: str | None = setting(None, "what the data files of such a demo file are relative to")


@dataclass
class ModelSettings:
    """Which model, and in which number format."""

    title: ClassVar[str] = "model"

    model_name_or_path: str | None = setting(
        None, "folder of a base model in the official layout, or of an adapter; none: the embedded tiny base"
    )
    base_model_path: str | None = setting(None, "where an adapter's base model lies now, if it has moved")
    mode: str | None = setting(None, "model family; read off the folder where that shows it", choices=FAMILIES)
    ptuning_checkpoint: str | None = setting(
        None, "a P-Tuning v2 prefix to put onto the base model: a folder or file with transformer.prefix_encoder.*"
    )
    dtype: str = setting(
        "auto",
        "number format of the frozen weights and of the computation; auto: bf16 where the "
        "accelerator has it, fp32 on a CPU",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    quantization_bit: str | None = setting(
        None,
        "hold the layers' weights in 8 or 4 bits (integers), or as nf4 (by bitsandbytes); none: as the folder has them",
        choices=QUANTISATIONS,
    )
    device: str = setting("auto", "auto: an accelerator if there is one", choices=("auto", "cpu", "cuda"))
    use_cpu: bool = setting(False, "the same as device cpu")
    attn_implementation: str = setting("sdpa", "attention backend of transformers", choices=ATTENTION)

    def __post_init__(self) -> None:
        self.device = "cpu" if self.use_cpu else self.device


@dataclass
class DataSettings:
    """How records are read and cut."""

    title: ClassVar[str] = "data"

    data_format: str = setting("auto", "what the records are; auto: by their keys", choices=DATA_FORMATS)
    input_separator: str = setting("", "triples: what stands between instruction and input")
    prompt_column: str | None = setting(None, "pairs: key of the question (default: content)")
    response_column: str | None = setting(None, "pairs: key of the answer (default: summary)")
    history_column: str | None = setting(None, "pairs: key of the earlier [question, answer] pairs")
    source_prefix: str = setting("", "pairs: text before every question")
    on_bad_record: str = setting(
        "error", "error: stop with the first few; skip: count them and write rejected.jsonl", choices=("error", "skip")
    )
    template: str = setting(
        "default",
        "default: the family's official chat prompt; reference: that of ChatGLM-Finetuning; raw: none, for base models",
        choices=TEMPLATES,
    )
    max_len: int = setting(1024, "longest row: prompt, answer and end token, in tokens", at_least=8, at_most=LONG)
    max_src_len: int | None = setting(
        None,
        "longest prompt of one question, in tokens; none: what the answer leaves of max_len, half of it at least",
        at_least=4,
        at_most=LONG,
    )
    max_source_length: int | None = setting(
        None,
        "with max_target_length, in place of the two above: longest prompt, in tokens",
        at_least=4,
        at_most=LONG,
    )
    max_target_length: int | None = setting(
        None, "longest answer without its end token, in tokens", at_least=4, at_most=LONG
    )


@dataclass
class LearningSettings(DataSettings):
    """What is learned of records."""

    title: ClassVar[str] = "data"

    cache_dir: str | None = setting(None, "folder of encoded data; none: glmft in the user's cache folder")
    num_proc: int | None = setting(None, "processes that encode; none: up to 8", at_least=1, at_most=1024)
    is_skip: bool = setting(False, "drop records that are too long instead of cutting them")
    loss_on: str = setting(
        "flagged",
        "what is learned of a conversation: all answers but those whose loss flag says no; all; the last; "
        "combined: as GLM-4's own script with combine: true, the last without its first token",
        choices=("flagged", "all", "last", "combined"),
    )


@dataclass
class TrainDataSettings(LearningSettings):
    """What a run trains on."""

    title: ClassVar[str] = "data"

    train_path: str | None = setting(
        None,
        "files of records (JSON, JSONL, CSV, TSV, Parquet), folders, globs, comma-separated; weights mix them "
        "(a.json:0.7,b.json:0.3); none: the shipped sample",
    )
    packing: bool = setting(False, "make rows of max_len of several documents, kept apart: micro-batches of one size")
    group_by_length: bool = setting(True, "put records of similar length into one optimizer step: ranks wait less")
    show_first_record: bool = setting(True, "print the tokens and labels of the first record when training starts")


@dataclass
class ValidationSettings:
    """What a run looks at on its way."""

    title: ClassVar[str] = "validation"

    val_path: str | None = setting(
        None,
        "files of records, as train_path, to look at while training",
    )
    val_ratio: float = setting(
        0.0, "in place of val_path: hold out this share of the training rows", at_least=0, at_most=0.9
    )
    eval_steps: int | float | None = setting(
        None, "optimizer steps between two validations, below 1 a share of all; none: at each epoch's end", more_than=0
    )
    per_device_eval_batch_size: int = setting(16, "records in one micro-batch of one rank when validating", at_least=1)
    predict_with_generate: bool = setting(
        False,
        "also answer some validation rows, and score the answers (rouge-1, rouge-2, rouge-l, bleu-4; f1 of triples)",
    )
    eval_samples: int = setting(50, "validation rows to answer", at_least=1)
    max_new_tokens: int = setting(256, "longest answer, in tokens", at_least=1, at_most=LONG)
    save_best: str | None = setting(
        None,
        "save a checkpoint when this metric is better than ever, and let the link best lead to it",
        choices=WATCHED,
    )
    early_stopping_patience: int | None = setting(
        None,
        "stop after this many validations in a row that do not better the metric of save_best (or eval_loss)",
        at_least=1,
    )


@dataclass
class TunerSettings:
    """What trains."""

    title: ClassVar[str] = "what is trained"

    # What tuners with settings of their own were given; such a setting is a flag once --train_type names its tuner.
    tuner_settings: dict[str, Any] = field(default_factory=dict, metadata={"limits": {}})
    train_type: str = setting("lora", f"one of {', '.join(TUNERS)} (all: the same as full)")
    lora_dim: int = setting(8, "LoRA: rank", at_least=1, at_most=WIDE)
    lora_alpha: float = setting(30, "LoRA: the update is scaled by lora_alpha / lora_dim", more_than=0)
    lora_dropout: float = setting(0.1, "LoRA: dropout probability on the way into the update", at_least=0, at_most=1)
    lora_module_name: str = setting(
        "query_key_value",
        "LoRA: comma-separated names of linear modules, or of groups of them: attention, mlp, all-linear",
    )
    use_rslora: bool = setting(False, "LoRA: scale the update by lora_alpha / sqrt(lora_dim)")
    use_dora: bool = setting(False, "LoRA: train magnitudes beside directions")
    init_lora_weights: str = setting(
        "default", "LoRA: initial values: default (B is zero), gaussian, pissa or pissa_niter_N (main components of W)"
    )
    loraplus_lr_ratio: float | None = setting(None, "LoRA+: learning rate of B over that of A", more_than=0)
    modules_to_save: str = setting("", "LoRA: comma-separated modules to train whole and save with the adapter")
    freeze_module_name: str | None = setting(None, "freeze: comma-separated parts of the parameter names to train")
    freeze_last_n: int | None = setting(
        None, "freeze: train this many last layers, in place of freeze_module_name; neither: the last one", at_least=1
    )
    freeze_part: str = setting("all", "freeze: what of the freeze_last_n layers", choices=("all", "attention", "mlp"))
    pre_seq_len: int = setting(16, "ptuning, prompt: virtual tokens", at_least=1, at_most=WIDE)
    prefix_projection: bool = setting(True, "ptuning: make the prefix by a two-layer tanh network, as P-Tuning v2 may")
    prefix_dropout: float = setting(
        0.1, "ptuning: dropout probability of the prefix, drawn for each record", at_least=0, at_most=1
    )
    prefix_hidden_size: int | None = setting(
        None, "ptuning: width inside that network; none: the model's own", at_least=1, at_most=WIDE
    )
    prompt_encoder: str = setting(
        "none", "prompt: what the embeddings of the virtual tokens go through", choices=("none", "mlp", "lstm")
    )
    prompt_hidden_size: int | None = setting(
        None, "prompt: width inside the encoder; none: the model's own", at_least=1, at_most=WIDE
    )
    trainable_dtype: str = setting("fp32", "number format of what is trained", choices=("fp32", "bf16"))


@dataclass
class OptimizerSettings:
    """How it trains."""

    title: ClassVar[str] = "optimizer and schedule"

    per_device_train_batch_size: int = setting(16, "records in one micro-batch of one rank", at_least=1)
    max_tokens_per_batch: int | None = setting(
        None, "split a micro-batch that holds more tokens, within the same optimizer step; none: never", at_least=1
    )
    gradient_accumulation_steps: int = setting(1, "micro-batches of a rank in one optimizer step", at_least=1)
    learning_rate: float = setting(1e-3, "highest learning rate", more_than=0)
    weight_decay: float = setting(0.1, "decoupled weight decay, not on biases and norms", at_least=0)
    adam_beta1: float = setting(0.9, "AdamW: decay of the mean", at_least=0, less_than=1)
    adam_beta2: float = setting(0.95, "AdamW: decay of the squares", at_least=0, less_than=1)
    max_grad_norm: float | None = setting(
        None,
        "clip the gradient to this norm, 0: never; none: as the DeepSpeed file says, else 1.0",
        at_least=0,
    )
    warmup_ratio: float = setting(
        0.1, "share of all optimizer steps in which the learning rate rises", at_least=0, at_most=1
    )
    lr_scheduler_type: str = setting(
        "cosine", "shape of the fall after the warm-up", choices=("cosine", "linear", "constant")
    )
    min_lr_ratio: float = setting(0.1, "the learning rate falls to this share of the highest", at_least=0, at_most=1)
    warmup_steps: int | float | None = setting(
        None, "in place of warmup_ratio: steps in which it rises; below 1 a share of all", at_least=0
    )
    num_train_epochs: int | float = setting(1, "passes over the data; the last may be a part of one", more_than=0)
    max_steps: int | None = setting(None, "optimizer steps in all, in place of num_train_epochs", at_least=1)


@dataclass
class RunSettings(FileSettings):
    """The run itself: its folder and its log lines."""

    title: ClassVar[str] = "run"

    output_dir: str | None = setting(
        None, "new folder for what is trained; none: output/ and a name after the settings"
    )
    overwrite_output_dir: bool = setting(False, "replace the run in output_dir, once the new one has a checkpoint")
    resume: str | None = setting(
        None,
        "go on from a checkpoint in output_dir: yes (or nothing) for the newest, or a step to go back to",
        bare="yes",
    )
    seed: int = setting(1234, "random seed of data order, initial values and dropout", at_least=0, at_most=2**31)
    show_loss_step: int | float = setting(
        10, "optimizer steps between two log lines, below 1 a share of all", more_than=0
    )
    save_model_step: int | float | None = setting(
        None, "optimizer steps between two checkpoints, below 1 a share of all; none: at each epoch's end", more_than=0
    )
    save_total_limit: int | None = setting(
        None,
        "keep this many checkpoints, the newest and the best always; none: all of them",
        at_least=1,
    )
    report_to: str = setting(
        "none",
        "further trackers, comma-separated: wandb, swanlab, mlflow, …; metrics.jsonl and TensorBoard are always there",
    )
    compare_answers: bool = setting(
        True, "answer the first record before and after training, and say whether the answers differ"
    )
    max_skipped_steps: int = setting(20, "fp16: optimizer steps in a row that the loss scaler may skip", at_least=0)
    local_rank: int | None = setting(None, "given by launchers; ignored")
    rank_timeout: int = setting(1800, "seconds that a rank may keep the others waiting", at_least=1, at_most=10**9)
    verbose: bool = setting(False, "let the libraries print what they like")


@dataclass
class TrainConfig(
    RunSettings,
    HardwareSettings,
    OptimizerSettings,
    TunerSettings,
    ValidationSettings,
    TrainDataSettings,
    ModelSettings,
):
    """Fine-tune a ChatGLM or GLM-4 model with DeepSpeed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.resume = resume_point(self.resume, self.output_dir)
        self.train_type = VALUES["train_type"].get(self.train_type, self.train_type)
        self.gradient_checkpointing = every_nth_layer(str(self.gradient_checkpointing))
        self.ds_file = self.ds_file or ("ds_zero1.json" if self.pipeline_stages > 1 else "ds_zero2_no_offload.json")

    @property
    def watched_metric(self) -> str:
        return self.save_best or "eval_loss"

    @property
    def report_names(self) -> list[str]:
        return [name for name in split_names(self.report_to) if name not in ("none", "tensorboard")]


def resume_point(given: str | None, output_dir: str | None) -> str | None:
    """`yes` or a step, where users also write True, latest, or the path of a checkpoint in `output_dir`."""
    if given is None or given.lower() in ("no", "false"):
        return None
    if given.lower() in ("yes", "true", "latest"):
        return "yes"
    step = re.fullmatch(r"checkpoint-(\d+)", Path(given).name)
    inside = Path(given).parent in (Path(), Path(output_dir or ""))
    return step[1] if step and inside else given


def split_names(text: str) -> list[str]:
    """The names in a comma-separated list, white space and quotes around them dropped."""
    return [name for part in text.split(",") if (name := part.strip().strip("\"'"))]


def to_json(config: Any) -> str:
    """A settings object as indented JSON, keys in the order of the fields."""
    return json.dumps(dataclasses.asdict(config), ensure_ascii=False, indent=2)
