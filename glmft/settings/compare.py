"""Settings of the comparison of tuners."""

from dataclasses import dataclass, field

from glmft.settings.setting import setting

METRICS = ("f1", "rouge-1", "rouge-2", "rouge-l", "bleu-4", "bleu-4-words", "exact-match")


@dataclass
class CompareConfig:
    """Train on one data set from one base in several ways with several seeds; score each; put all into one table.

    Every setting of glmft train can be given too, for all runs: --train_path, --max_steps, --learning_rate, …
    """

    tuners: str = setting(
        "lora,ptuning,freeze,prompt",
        "comma-separated: ways to train by the names of --train_type, YAML files of train settings, folders of those",
    )
    num_seeds: int = setting(3, "runs of each: with --seed, with --seed + 1, …", at_least=1, at_most=1000)
    test_path: str | None = setting(
        None, "files of records to score answers to, as train_path; none: the shipped test sample"
    )
    general_path: str | None = setting(
        None,
        "records of something else that the base can do: their score before and after shows what is forgotten; none: "
        "the shipped sample, with the embedded base",
    )
    max_samples: int | None = setting(None, "score only the first records of each, this many", at_least=1)
    metric: str | None = setting(
        None, "what the picture shows and forgetting is counted in; none: f1 of triples, else rouge-l", choices=METRICS
    )
    launcher: str = setting("", "what starts each run: torchrun --nproc_per_node 2, deepspeed --num_gpus 4, …")
    output_dir: str = setting("output/compare", "folder of all runs, compare.md, compare.csv and compare.png")
    # Flags of glmft train, for all runs.
    train_flags: tuple[str, ...] = field(default=(), metadata={"limits": {}})
