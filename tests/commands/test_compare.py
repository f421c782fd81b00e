"""`glmft compare`: what is run, what is not run again, and the table. Training and answering are stood in for."""

import csv
import dataclasses
import json

import pytest

from glmft.cli import main
from glmft.commands import compare, compare_run
from glmft.commands.compare_table import OURS, Row, markdown, row_of
from glmft.errors import ConfigError, GlmftError
from glmft.settings.compare import CompareConfig
from glmft.settings.config import to_json

PNG = b"\x89PNG"


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Runs that finish at once, with a score that goes with tuner and seed; `freeze` fails. What was trained."""
    trained, asked = [], []

    def started(words, log):
        flags = dict(zip(words[4::2], words[5::2], strict=True))
        out = tmp_path / flags["--output_dir"]
        trained.append(out.name)
        if "freeze" in out.name:
            log.write(b"starting\nerror: layers.27.: matches nothing\nbye\n")
            return 2
        [run] = [run for run in compare.runs_of(asked[-1]) if run.folder.name == out.name]
        out.mkdir(parents=True)
        (out / "train_config.json").write_text(to_json(run.config))
        results = {"last_loss": 0.5, "steps": 3, "seconds": 10.0, "peak_memory_bytes": 2**30}
        results |= {"trainable_parameters": 10, "total_parameters": 1000}
        (out / "train_results.json").write_text(json.dumps(results))
        (out / "checkpoint-3").mkdir()
        (out / "checkpoint-3" / "x").write_bytes(bytes(2**20))
        return 0

    def predict(config):
        is_base = config.model_name_or_path.endswith("base")
        general = "old" in config.test_path
        seed = 0 if is_base else int(config.model_name_or_path[-4:]) - 1234
        f1 = (0.9 - 0.1 * seed if general else 0.1 * seed) + (0 if is_base else 0.01)
        return {"records": 2, "triple": {"f1": f1}, "triple_micro": {"f1": f1}, "predict_rouge-l": 50.0}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare_run, "started", started)
    monkeypatch.setattr(compare_run, "predict", predict)
    (tmp_path / "old.json").write_text("{}")
    return asked, trained


def run(world, **changes):
    config = CompareConfig(**{"general_path": "old.json", "num_seeds": 2, "output_dir": "out", **changes})
    world[0].append(config)
    return compare.compare(config)


def test_each_tuner_has_a_row_with_mean_and_spread_and_what_is_forgotten(world, tmp_path):
    rows = {row.name: row for row in run(world, tuners="lora,ptuning")}
    assert world[1] == ["lora-seed-1234", "ptuning-seed-1234", "lora-seed-1235", "ptuning-seed-1235"]
    lora = rows["lora"]
    assert lora.means["test/f1"] == pytest.approx((0.01 + 0.11) / 2)
    assert lora.spreads["test/f1"] == pytest.approx(0.1 / 2**0.5)
    assert lora.means["drop/f1"] == pytest.approx(0.9 - (0.91 + 0.81) / 2)
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert (
        "| lora | 10 (1.00%) | 0.0600 ± 0.0707 | 50.00 ± 0.00 | 0.5000 ± 0.0000 | 0:00:10 | 1.00 GiB | 1.00 MiB "
        "| 0.8600 ± 0.0707, 0.0400 |"
    ) in text
    assert "| *LoRA (published); ChatGLM-Finetuning: " in text
    table = list(csv.DictReader((tmp_path / "out" / "compare.csv").open(encoding="utf-8")))
    assert [row["kind"] for row in table] == ["base", "measured here", "measured here", *["published"] * 6]
    each = list(csv.DictReader((tmp_path / "out" / "compare_runs.csv").open(encoding="utf-8")))
    assert [(row["tuner"], row["seed"]) for row in each] == [
        ("lora", "1234"),
        ("ptuning", "1234"),
        ("lora", "1235"),
        ("ptuning", "1235"),
    ]
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(PNG)


def test_a_finished_run_is_not_run_again_and_more_can_be_added(world):
    run(world, tuners="lora", num_seeds=1)
    run(world, tuners="lora,ptuning")
    assert world[1] == ["lora-seed-1234", "ptuning-seed-1234", "lora-seed-1235", "ptuning-seed-1235"]


def test_a_run_that_fails_leaves_its_row_with_the_reason(world, tmp_path):
    rows = {row.name: row for row in run(world, tuners="freeze,lora") if row.kind == OURS}
    assert rows["freeze"].failures[0].startswith("seed 1234: layers.27.: matches nothing (exit code 2; out")
    assert rows["lora"].means
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "| freeze | failed: seed 1234: layers.27.: matches nothing" in text
    [line] = [line for line in csv.DictReader((tmp_path / "out" / "compare.csv").open()) if line["tuner"] == "freeze"]
    assert (line["failed"], line["runs"]) == ("2", "0")
    with pytest.raises(GlmftError, match="no run was finished"):
        run(world, tuners="freeze", output_dir="other")


def test_a_run_of_other_settings_is_not_taken_for_this_one(world):
    run(world, tuners="lora", num_seeds=1)
    with pytest.raises(GlmftError, match="no run was finished"):
        run(world, tuners="lora", num_seeds=1, train_flags=("--learning_rate", "0.5"))
    assert world[1] == ["lora-seed-1234"]
    [_, row, *_] = run(world, tuners="lora", train_flags=("--show_loss_step", "3"))
    assert row.failures == []


def test_a_run_that_was_cut_short_goes_on_from_its_checkpoint_if_it_has_one(tmp_path, monkeypatch):
    [one] = compare.runs_of(CompareConfig(tuners="lora", num_seeds=1, output_dir=str(tmp_path)))
    asked = []
    monkeypatch.setattr(compare_run, "started", lambda words, log: asked.append(words) or 75)
    one.folder.mkdir(parents=True)
    (one.folder / "train_config.json").write_text(to_json(one.config))
    for _ in range(2):
        assert "exit code 75" in compare_run.finish_run(one, {}, "", None, tmp_path / "log").failure
        (one.folder / "checkpoint-2").mkdir(exist_ok=True)
    assert asked[0][-1] == "--overwrite_output_dir"
    assert asked[1][-2:] == ["--resume", "yes"]


def test_what_is_wrong_with_the_settings_is_told_at_once(tmp_path):
    (tmp_path / "lora.yaml").write_text("train_type: lora\n")
    flags = ("--seed", "5", "--lora_dim", "0", "--resume", "yes")
    config = CompareConfig(tuners=f"lora,{tmp_path},loro", train_flags=flags)
    with pytest.raises(ConfigError) as error:
        compare.runs_of(config)
    first, second, third = error.value.problems
    assert first == "--resume: is the comparison's own; see glmft compare --help"
    assert second.startswith("--tuners loro: is none of")
    assert second.endswith("did you mean lora?")
    assert third == "--tuners: two are called lora; rename one file"
    with pytest.raises(ConfigError, match="lora: --lora_dim 0: must be at least 1"):
        compare.runs_of(dataclasses.replace(config, tuners="lora", train_flags=flags[:4]))


def test_flags_of_training_go_to_every_run_and_those_of_a_file_come_before_them(tmp_path):
    (tmp_path / "wide.yaml").write_text("train_type: lora\nlora_dim: 32\nmax_steps: 9\n")
    flags = ("--max_steps", "5", "--seed", "7")
    config = CompareConfig(tuners=f"{tmp_path / 'wide.yaml'},prompt", num_seeds=2, train_flags=flags)
    runs = compare.runs_of(config)
    assert [(r.tuner, r.config.train_type, r.config.seed, r.config.max_steps) for r in runs] == [
        ("wide", "lora", 7, 5),
        ("prompt", "prompt", 7, 5),
        ("wide", "lora", 8, 5),
        ("prompt", "prompt", 8, 5),
    ]
    assert runs[0].config.lora_dim == 32


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("torchrun --nproc_per_node 2", ["torchrun", "--nproc_per_node", "2", "-m", "glmft", "train"]),
        ("deepspeed --num_gpus 4", ["deepspeed", "--num_gpus", "4", "--module", "glmft", "train"]),
    ],
)
def test_a_launcher_starts_the_runs(launcher, words):
    assert compare_run.command(["--seed", "1"], launcher) == [*words, "--seed", "1"]


def test_seconds_before_a_resumption_count(tmp_path):
    lines = [{"step": i, "seconds": s} for i, s in enumerate([1.0, 4.0, 2.0, 3.0])]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare_run.seconds_of(tmp_path, 3.5) == 7.5


def test_one_seed_has_no_spread():
    row = row_of("lora", [compare_run.Outcome(None, {"test/f1": 0.5})], {})
    assert (row.means, row.spreads) == ({"test/f1": 0.5}, {})
    assert "| lora | – | 0.5000 |" in markdown([Row("x", OURS, {"test/f1": 0.1}), row], "f1", [])


def test_the_command_line_hands_flags_of_training_on(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare.md").write_text("the table")
    monkeypatch.setattr(compare, "compare", asked.append)
    assert main(["compare", "--tuners", "lora", "--max_steps", "3", "--output_dir", "."]) == 0
    assert asked[0].train_flags == ("--max_steps", "3")
    assert "the table" in capsys.readouterr().out
