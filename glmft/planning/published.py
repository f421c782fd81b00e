"""Published figures of memory, beside the plan of the same settings and beside the least that glmft needs for them."""

from dataclasses import dataclass, field
from typing import Any

from glmft.planning.cards import GIB, TAKEN
from glmft.planning.run import Run, fixed_load, setting_of, shipped_zero, smallest
from glmft.planning.shape import OFFICIAL
from glmft.settings.config import TrainConfig

FINETUNING, DEMO, OFFICIAL_PTUNING = "ChatGLM-Finetuning", "ChatGLM3 demo", "ChatGLM-6B ptuning"
LORA = {"train_type": "lora", "lora_dim": 16}
ALL_LINEAR = {**LORA, "lora_module_name": "all-linear"}
FREEZE = {"train_type": "freeze", "freeze_last_n": 4}
PREFIX = {"train_type": "ptuning", "pre_seq_len": 16}
FULL = {"train_type": "full", "gradient_checkpointing": 1}


@dataclass(frozen=True)
class Row:
    """
    Args:
        published: GiB, as the project's tool shows them.
        flags: settings of `TrainConfig`.
        tokens: of a row; rows: of a micro-batch.
    """

    project: str
    model: str
    published: float
    flags: dict[str, Any] = field(hash=False)
    tokens: int = 1560
    rows: int = 1
    gpus: int = 1
    stage: int = 2
    offloads: bool = False
    bits: str | None = None


def _finetuning(model: str, flags: dict[str, Any], gpus: int, *pair: tuple[float, int]) -> list[Row]:
    """With checkpointing and without: what is published, and the tokens of the one row."""
    return [
        Row(FINETUNING, model, published, {**flags, "gradient_checkpointing": every}, tokens, gpus=gpus)
        for every, (published, tokens) in zip((1, 0), pair, strict=True)
    ]


_SIX, _TWO, _THREE = "chatglm-6b", "chatglm2-6b", "chatglm3-6b"
_PREFIX_OF_128 = {"train_type": "ptuning", "pre_seq_len": 128, "prefix_projection": False}
ROWS: tuple[Row, ...] = (
    *_finetuning(_SIX, FREEZE, 1, (36, 1560), (38, 1560)),
    *_finetuning(_TWO, FREEZE, 1, (35, 1560), (36, 1560)),
    *_finetuning(_SIX, FREEZE, 4, (24, 1560), (29, 1560)),
    *_finetuning(_TWO, FREEZE, 4, (22, 1560), (27, 1560)),
    *_finetuning(_SIX, PREFIX, 1, (43, 768), (44, 300)),
    *_finetuning(_TWO, PREFIX, 1, (20, 1560), (40, 1560)),
    *_finetuning(_SIX, PREFIX, 4, (37, 1560), (44, 1360)),
    *_finetuning(_TWO, PREFIX, 4, (19, 1560), (39, 1560)),
    *_finetuning(_SIX, LORA, 1, (20, 1560), (45, 1560)),
    *_finetuning(_TWO, ALL_LINEAR, 1, (20, 1560), (43, 1560)),
    *_finetuning(_SIX, LORA, 4, (20, 1560), (45, 1560)),
    *_finetuning(_TWO, ALL_LINEAR, 4, (19, 1560), (42, 1560)),
    Row(FINETUNING, _SIX, 33, FULL, gpus=4, stage=3, offloads=True),
    Row(FINETUNING, _TWO, 26, FULL, gpus=4, stage=3, offloads=True),
    Row(FINETUNING, _TWO, 44, FULL, gpus=4, stage=3),
    Row(DEMO, _THREE, 48346 / 1024, {"train_type": "full"}, 200, 4, gpus=4, stage=3),
    Row(DEMO, _THREE, 18426 / 1024, _PREFIX_OF_128, 200, 4),
    Row(DEMO, _THREE, 14082 / 1024, {"train_type": "lora", "lora_dim": 8}, 200, 4),
    Row(OFFICIAL_PTUNING, _SIX, 14, _PREFIX_OF_128, 128),
    Row(OFFICIAL_PTUNING, _SIX, 9, _PREFIX_OF_128, 128, bits="8"),
    Row(OFFICIAL_PTUNING, _SIX, 7, _PREFIX_OF_128, 128, bits="4"),
    Row(OFFICIAL_PTUNING, _SIX, 6.7, _PREFIX_OF_128, 128, bits="4"),
    Row(OFFICIAL_PTUNING, _SIX, 11, {**_PREFIX_OF_128, "pre_seq_len": 512}, 128, bits="4"),
)


def run_of(row: Row) -> Run:
    """The same settings in glmft, in bf16."""
    shape, config = OFFICIAL[row.model], TrainConfig(**row.flags)
    load, zero = (
        fixed_load(row.rows, row.tokens, row.tokens // 2, shape.layout),
        shipped_zero(row.stage, row.offloads, shape.hidden),
    )
    setting = setting_of(config, shape, load, "bf16", zero, row.gpus, True, row.bits)
    return Run(setting, 10_000, row.rows, 1)


def described(row: Row) -> str:
    """The settings, in few words."""
    flags = row.flags
    sizes = {"lora": f" {flags.get('lora_dim')}", "freeze": " 4 layers", "ptuning": f" {flags.get('pre_seq_len')}"}
    parts = [flags["train_type"] + sizes.get(flags["train_type"], "")]
    parts += ["all linear"] if "lora_module_name" in flags else []
    parts += ["projected"] if flags["train_type"] == "ptuning" and "prefix_projection" not in flags else []
    parts += [f"{row.rows} x {row.tokens}", f"ZeRO-{row.stage}"]
    parts += ["offload"] if row.offloads else []
    parts += ["checkpointing"] if flags.get("gradient_checkpointing") else []
    parts += [f"INT{row.bits}"] if row.bits else []
    return ", ".join(parts)


def table() -> str:
    """All rows, as Markdown; GiB on a GPU, with what CUDA itself takes."""
    lines = [
        "| project | model | settings | GPUs | published | the same in glmft, planned | the least in glmft, planned |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for row in ROWS:
        asked = run_of(row)
        best = smallest(asked)
        planned, least = ((run.memory.peak + TAKEN) / GIB for run in (asked, best))
        how = " ".join(best.flags) or "the same"
        lines.append(
            f"| {row.project} | {row.model} | {described(row)} | {row.gpus} | {row.published:.1f} | {planned:.1f} "
            f"| {least:.1f}: {how} |"
        )
    return "\n".join(lines)
