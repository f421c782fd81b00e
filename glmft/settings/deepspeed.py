"""One DeepSpeed configuration out of our flags and the file that a user brings.

Who owns what: batch sizes, optimizer and schedule come from the flags; stage, offload and buckets from the file;
clipping from the flag, else the file, else 1.0; the number format from --dtype, else the file where the device has it.
What a file says otherwise is overridden with one line that names both values. "auto" is filled in here; an unknown key
is an error.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, hints
from glmft.reading import read_json
from glmft.schema import one_of
from glmft.settings.config import TrainConfig
from glmft.settings.deepspeed_kinds import unchecked_problems

# Top-level keys of DeepSpeed's configuration; it drops unknown ones silently.
KNOWN_KEYS = frozenset(
    """activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comms_logger communication_data_type
    compile compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
    disable_allgather dump_state eigenvalue elasticity flops_profiler fp16 fp32_allreduce gradient_accumulation_steps
    gradient_clipping gradient_predivide_factor graph_harvesting hybrid_engine load_from_fp32_weights memory_breakdown
    nebula optimizer pipeline prescale_gradients progressive_layer_drop quantize_training scheduler
    seq_parallel_communication_data_type
    sequence_parallel_size sparse_attention sparse_gradients steps_per_print tensor_parallel tensorboard timers
    torch_autocast train_batch_size train_micro_batch_size_per_gpu use_data_before_expert_parallel_
    use_node_local_storage wandb wall_clock_breakdown weight_quantization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization""".split()
)
_OURS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "steps_per_print",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "bfloat16",
}


# Buckets of ZeRO-3 that a file leaves to us, in elements, from the model's hidden size: as transformers fills them, so
# that a file behaves as it did there. A prefetch is less than a square weight (0.9 of one), so that the next layer's
# parameters do not crowd out the present one's; below ten vectors (biases, norms) a parameter stays on every rank.
_BY_HIDDEN_SIZE = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}


@dataclass(frozen=True)
class Resolved:
    """The configuration for `deepspeed.initialize`, and a line for each value of the file that was overridden.

    Args:
        given: what the file holds, without its "auto"s.
    """

    config: dict[str, Any]
    messages: list[str]
    given: dict[str, Any] = field(default_factory=dict)


def resolve(path: Path, config: TrainConfig, world_size: int, dtype: str, hidden_size: int | None = None) -> Resolved:
    """A DeepSpeed file with the values that the flags own.

    Args:
        path: the DeepSpeed file.
        world_size: ranks in all.
        dtype: fp32, bf16 or fp16.
        hidden_size: the model's, for buckets that are "auto"; None leaves them to DeepSpeed.

    Raises:
        ConfigError: no JSON object, an unknown top-level key, or a ZeRO stage that does not exist.
    """
    given = read_json(path)
    unknown = [key for key in given if key not in KNOWN_KEYS]
    if unknown:
        near = hints(unknown, KNOWN_KEYS, repr)
        raise ConfigError(f"{path}: {key!r} is no DeepSpeed key{hint}" for key, hint in zip(unknown, near, strict=True))
    if wrong := unchecked_problems(_without_auto(given), path):
        raise ConfigError(wrong)
    batch = config.per_device_train_batch_size
    ours: dict[str, Any] = {
        "train_batch_size": batch * config.gradient_accumulation_steps * world_size,
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
    }
    messages = [
        f"{path.name}: {key} {given[key]} -> {value} (from the flags)"
        for key, value in ours.items()
        if given.get(key, "auto") not in ("auto", value)
    ]
    left_out = [key for key in ("optimizer", "scheduler") if key in given]
    messages += [f"{path.name}: {key} is left out: the flags own it" for key in left_out]
    clipping = given.get("gradient_clipping", "auto")
    if config.max_grad_norm is not None:
        if clipping not in ("auto", config.max_grad_norm):
            messages.append(f"{path.name}: gradient_clipping {clipping} -> {config.max_grad_norm} (--max_grad_norm)")
        clipping = config.max_grad_norm
    ours["gradient_clipping"] = 1.0 if clipping == "auto" else clipping
    messages += _precision_lines(path, given, dtype, config.dtype)
    if dtype == "fp16":
        scaling = given.get("fp16") if isinstance(given.get("fp16"), dict) else {}
        ours["fp16"] = {**_without_auto(scaling), "enabled": True}
    rest = {key: value for key, value in given.items() if key not in _OURS}
    rest["zero_optimization"] = _zero(path, rest.get("zero_optimization", {}), hidden_size)
    if dtype == "fp16" and rest["zero_optimization"].get("stage", 0) == 0:
        rest["zero_optimization"]["stage"] = 1
        why = "a checkpoint in fp16 needs the stage's own copy of the weights"
        messages.append(f"{path.name}: ZeRO stage 0 -> 1 ({why})")
    fixed = {"steps_per_print": 10**9, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return Resolved({**_without_auto(rest), **ours, **fixed}, messages, _without_auto(given))


def asked_precision(path: Path) -> str | None:
    """fp16 or bf16, if a DeepSpeed file enables it."""
    return next(iter(_asked(read_json(path))), None)


def _asked(given: dict[str, Any]) -> list[str]:
    return [
        name
        for name, keys in (("fp16", ("fp16",)), ("bf16", ("bf16", "bfloat16")))
        for key in keys
        if isinstance(given.get(key), dict) and given[key].get("enabled") is True
    ]


def _precision_lines(path: Path, given: dict[str, Any], dtype: str, flag: str) -> list[str]:
    why = "DeepSpeed does not have it on this device" if flag == "auto" else "--dtype decides"
    return [f"{path.name}: {name} -> {dtype} ({why})" for name in _asked(given) if name != dtype]


def _zero(path: Path, zero: Any, hidden_size: int | None) -> dict[str, Any]:
    if not isinstance(zero, dict) or not one_of(0, 1, 2, 3).passes(zero.get("stage", 0)):
        raise ConfigError(f"{path}: zero_optimization must be an object with stage 0, 1, 2 or 3")
    if hidden_size:
        zero = {
            k: _BY_HIDDEN_SIZE[k](hidden_size) if v == "auto" and k in _BY_HIDDEN_SIZE else v for k, v in zero.items()
        }
    offload = ("offload_param", "offload_optimizer")
    # "auto" is what some files say for a device; no offload is what they then get.
    return {k: v for k, v in zero.items() if k not in offload or (isinstance(v, dict) and v.get("device") != "auto")}


def _without_auto(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_auto(v) for k, v in value.items() if v != "auto"}
    return value
