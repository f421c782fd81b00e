"""A run that keeps what comes into its lowest trained layer learns what one learns that keeps nothing."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from ranks import NATIVE, SECONDS, metrics, run, start, train
from safetensors.torch import load_file

from glmft.family import FAMILIES

FREEZE = ["--train_type", "freeze", "--freeze_last_n", "1"]
UPPER = [
    "--train_type",
    "lora",
    "--lora_module_name",
    "layers.2.self_attention.query_key_value",
    "--lora_dropout",
    "0.1",
]
# Ten records: five steps an epoch with one rank.
RUN = ["--per_device_train_batch_size", "2", "--num_train_epochs", "3", "--max_len", "512", "--learning_rate", "1e-3"]
RUN += ["--show_loss_step", "1", "--save_model_step", "1", "--save_total_limit", "2"]
KEEP = "--cache_frozen_activations"
CASES = [
    pytest.param(family, FREEZE, [], 1 + (i % 2), id=f"{family}-{1 + (i % 2)}")
    for i, family in enumerate([*FAMILIES, *NATIVE])
]
CASES += [
    pytest.param("glm2", FREEZE, ["--packing", "--gradient_checkpointing", "--max_len", "200"], 1, id="packing"),
    pytest.param("glm3", UPPER, ["--dtype", "bf16", "--ds_file", "ds_zero1.json"], 2, id="lora-bf16"),
    pytest.param("glm2", UPPER, ["--quantization_bit", "4"], 1, id="lora-int4"),
    pytest.param("glm2", FREEZE, ["--ds_file", "ds_zero3_no_offload.json"], 2, id="zero3"),
    pytest.param("native-glm4", FREEZE, ["--ds_file", "ds_zero3_no_offload.json"], 2, id="native-zero3"),
    pytest.param("glm", FREEZE, ["--dtype", "bf16", "--max_tokens_per_batch", "60"], 2, id="glm-bf16"),
]


def weights(folder) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def same_weights(a, b, **tolerance) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], msg=name, **tolerance)


def figures(folder) -> dict[str, list[float]]:
    lines = metrics(folder)
    return {name: [line[name] for line in lines if name in line] for name in ("loss", "grad_norm", "eval_loss")}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tuner", "flags", "ranks"), CASES)
def test_a_run_that_keeps_states_is_the_run_that_keeps_none(family, tuner, flags, ranks, all_folders, uneven, tmp_path):
    cache, plain, kept, resumed, anew = (tmp_path / name for name in ("cache", "plain", "kept", "resumed", "anew"))
    common = ["--train_path", str(uneven), "--model_name_or_path", str(all_folders[family]), *RUN, *tuner, *flags]
    common += ["--cache_dir", str(cache), "--val_path", str(uneven)]
    for folder, more in ((plain, []), (kept, [KEEP])):
        codes, printed = train([*common, *more, "--output_dir", str(folder)], ranks, tmp_path)
        assert codes == [0] * ranks, printed
    assert "states behind the frozen layers 0 to 1 are made" in printed
    without, with_states = figures(plain), figures(kept)
    epoch = len(without["loss"]) // 3
    assert without["loss"][:epoch] == with_states["loss"][:epoch]
    assert without["grad_norm"][:epoch] == with_states["grad_norm"][:epoch]
    for name, values in without.items():
        assert len(values) >= 3
        assert values == pytest.approx(with_states[name], rel=2e-2 if "bf16" in flags else 1e-4), name
    # Killed in the second epoch: it goes on with what was kept, or makes it once more.
    common += [KEEP, "--output_dir"]
    codes, printed = train([*common, str(resumed)], ranks, tmp_path, die_after=1 + epoch + 1)
    assert codes == [-signal.SIGKILL] * ranks, printed
    assert "states behind the frozen layers 0 to 1 were there already" in printed
    shutil.copytree(resumed, anew)
    for folder in (resumed, anew):
        codes, printed = train([*common, str(folder), "--resume", "yes"], ranks, tmp_path)
        assert codes == [0] * ranks, printed
        assert figures(folder) == with_states
        same_weights(folder, kept, rtol=0, atol=0)
        [sealed] = (path for path in cache.glob("boundary-*") if path.is_dir())
        shutil.rmtree(sealed)


@pytest.mark.slow
def test_without_use_a_run_says_why_and_a_damaged_file_is_made_again(official_folders, uneven, tmp_path):
    cache = tmp_path / "cache"
    common = ["--train_path", str(uneven), "--model_name_or_path", str(official_folders["glm2"]), *RUN, *FREEZE, KEEP]
    common += ["--cache_dir", str(cache), "--longest_batch_first", "False", "--compare_answers", "False"]
    code, printed = run("train", [*common, "--max_steps", "2", "--output_dir", str(tmp_path / "a")], tmp_path)
    assert code == 0, printed
    assert f"warning: {KEEP}: without effect, as the run sees each record once" in printed
    assert list(cache.glob("boundary-*")) == []
    for folder, made in (("b", "are made"), ("c", "are made"), ("d", "were there already")):
        code, printed = run("train", [*common, "--max_steps", "6", "--output_dir", str(tmp_path / folder)], tmp_path)
        assert code == 0, printed
        assert f"states behind the frozen layers 0 to 1 {made}: " in printed
        if folder == "b":
            [states] = cache.glob("boundary-*/*.states")
            states.write_bytes(states.read_bytes()[:-1] + b"x")
    assert figures(tmp_path / "b") == figures(tmp_path / "d")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disk_that_fills_up_meanwhile_is_one_line_and_leaves_nothing_half(ranks, official_folders, uneven, tmp_path):
    cache = tmp_path / "cache"
    common = ["--train_path", str(uneven), "--model_name_or_path", str(official_folders["glm2"]), *RUN, *FREEZE, KEEP]
    common += ["--cache_dir", str(cache), "--longest_batch_first", "False", "--compare_answers", "False"]
    common += ["--output_dir", str(tmp_path / "out")]
    codes, printed = train([*common, "--max_steps", "2"], ranks, tmp_path)  # makes the cache of encoded data
    assert codes == [0] * ranks, printed
    before = {path for path in cache.iterdir() if path.suffix != ".lock"}
    codes, printed = train([*common, "--overwrite_output_dir"], ranks, tmp_path, file_bytes=20_000)
    assert codes == [2] * ranks, printed
    assert printed.count(f"error: {KEEP}: ") == 1
    assert "could not be written (File too large); name another --cache_dir" in printed
    assert "Traceback" not in printed
    assert {path for path in cache.iterdir() if path.suffix != ".lock"} == before


@pytest.mark.slow
def test_of_two_runs_at_once_one_makes_the_states_and_the_other_waits_for_them(official_folders, uneven, tmp_path):
    common = ["--train_path", str(uneven), "--model_name_or_path", str(official_folders["glm2"]), *RUN, *FREEZE, KEEP]
    common += ["--cache_dir", str(tmp_path / "cache"), "--longest_batch_first", "False", "--compare_answers", "False"]
    running = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        running.append(start([*common, "--output_dir", str(tmp_path / name / "out")], 1, tmp_path / name))
    printed = ""
    for [process], [log] in running:
        process.join(SECONDS)
        assert process.exitcode == 0
        printed += Path(log).read_text(encoding="utf-8")
    assert printed.count("are made: ") == printed.count("were there already: ") == 1
    assert figures(tmp_path / "a" / "out") == figures(tmp_path / "b" / "out")


@pytest.mark.slow
def test_layers_that_run_on_kept_states_may_be_compiled(official_folders, uneven, tmp_path):
    common = ["--train_path", str(uneven), "--model_name_or_path", str(official_folders["glm2"]), *RUN, *FREEZE, KEEP]
    common += ["--cache_dir", str(tmp_path / "cache")]
    for name, more in (("eager", []), ("compiled", ["--torch_compile", "--gradient_checkpointing", "every", "2"])):
        code, printed = run("train", [*common, *more, "--output_dir", str(tmp_path / name)], tmp_path)
        assert code == 0, printed
    for name, values in figures(tmp_path / "eager").items():
        assert values == pytest.approx(figures(tmp_path / "compiled")[name], rel=1e-4), name
