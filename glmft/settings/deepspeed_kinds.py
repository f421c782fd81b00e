"""What DeepSpeed takes on trust: keys of its file that no model of its own checks, by type and range."""

from pathlib import Path
from typing import Any

from glmft.schema import FLAG, NULL, Kind, number, one_of, problems, text, whole

_FORMAT = one_of("fp32", "fp16", "bf16") | NULL
TOP: dict[str, Kind] = {
    "train_batch_size": whole(1),
    "train_micro_batch_size_per_gpu": whole(1),
    "gradient_accumulation_steps": whole(1),
    "gradient_clipping": number(0, 1e9),
    "steps_per_print": whole(0) | number(0, 1e18),
    "communication_data_type": _FORMAT,
    "seq_parallel_communication_data_type": _FORMAT,
    "gradient_predivide_factor": number(1e-9, 1e9),
    "sequence_parallel_size": one_of(1),
    **dict.fromkeys(
        (
            "dataloader_drop_last",
            "disable_allgather",
            "dump_state",
            "fp32_allreduce",
            "load_from_fp32_weights",
            "memory_breakdown",
            "prescale_gradients",
            "sparse_gradients",
            "use_node_local_storage",
            "wall_clock_breakdown",
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
        ),
        FLAG,
    ),
}
SECTIONS: dict[str, dict[str, Kind]] = {
    "activation_checkpointing": {
        "number_checkpoints": whole(1) | NULL,
        **dict.fromkeys(
            (
                "partition_activations",
                "contiguous_memory_optimization",
                "synchronize_checkpoint_boundary",
                "profile",
                "cpu_checkpointing",
            ),
            FLAG,
        ),
    },
    "flops_profiler": {
        "enabled": FLAG,
        "recompute_fwd_factor": number(0, 100),
        "profile_step": whole(0),
        "module_depth": whole(-1),
        "top_modules": whole(0),
        "detailed": FLAG,
        "output_file": text() | NULL,
    },
    "aio": {
        "block_size": whole(1),
        "queue_depth": whole(1, 1 << 16),
        "intra_op_parallelism": whole(1, 1024),
        "thread_count": whole(1, 1024),
        "single_submit": FLAG,
        "overlap_events": FLAG,
        "use_gds": FLAG,
    },
    "data_types": {"grad_accum_dtype": _FORMAT, "param_dtype": _FORMAT, "buffer_dtype": _FORMAT},
    "checkpoint": {
        "tag_validation": text(r"(?i)warn|ignore|fail", 10, "warn, ignore or fail,"),
        "load_universal": FLAG,
        "use_node_local_storage": FLAG,
    },
}
# Another way to train than this loop's.
NOT_HERE = (
    "autotuning",
    "data_efficiency",
    "hybrid_engine",
    "pipeline",
    "quantize_training",
    "tensor_parallel",
    "weight_quantization",
)


def unchecked_problems(given: dict[str, Any], path: Path) -> list[str]:
    """What is wrong with a DeepSpeed file, its "auto" values left out, beside what DeepSpeed itself would find."""
    wrong = problems(given, TOP, path)
    for section, kinds in SECTIONS.items():
        value = given.get(section, {})
        if not isinstance(value, dict):
            wrong.append(f"{path}: {section} must be an object")
            continue
        wrong += problems(
            {f"{section}.{k}": v for k, v in value.items()}, {f"{section}.{k}": v for k, v in kinds.items()}, path
        )
        wrong += [f"{path}: {section}.{key} is no DeepSpeed key" for key in value if key not in kinds]
    for name in NOT_HERE:
        value = given.get(name)
        if (
            value not in (None, False)
            and value != {}
            and not (isinstance(value, dict) and value.get("enabled") is False)
        ):
            wrong.append(f"{path}: {name} is another way to train than this loop's; take it out")
    return wrong
