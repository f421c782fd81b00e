import json

import pytest

from glmft.cli import main
from glmft.planning.cards import CARDS, find_card


def planned(capsys, *argv: str) -> str:
    assert main(["plan", *argv]) == 0
    return capsys.readouterr().out


def figures(capsys, *argv: str) -> dict:
    return json.loads(planned(capsys, *argv, "--json"))


@pytest.mark.parametrize("name", ["chatglm-6b", "THUDM/chatglm2-6b", "chatglm3-6b", "GLM-4-9b"])
def test_official_shapes_have_the_numbers_of_the_official_models(name, capsys):
    billions = {"chatglm-6b": 6.17, "chatglm2-6b": 6.24, "chatglm3-6b": 6.24, "glm-4-9b": 9.40}
    found = figures(capsys, name)["model"]["numbers"] / 1e9
    assert found == pytest.approx(billions[name.rpartition("/")[2].lower()], abs=0.005)


def test_a_plan_tells_parts_the_fastest_setting_that_fits_and_how_more_gpus_help(capsys):
    text = planned(capsys, "chatglm2-6b", "--gpu", "rtx3090", "--per_device_train_batch_size", "4")
    for part in ("weights", "gradients", "optimizer", "activations", "head and loss", "gradient buckets"):
        assert part in text
    assert "does not fit: rtx3090 has 23.0 GiB" in text
    assert "fastest that fits: --" in text
    assert "ZeRO-3  n W G A + n w P A" in text


def test_the_fastest_setting_keeps_the_rows_of_an_optimizer_step_and_fits(capsys):
    plan = figures(capsys, "chatglm2-6b", "--gpu", "24", "--per_device_train_batch_size", "8")
    [batch] = [flag for flag in plan["fastest"]["flags"] if "batch_size" in flag]
    sizes = [int(word) for word in batch.split() if word.isdigit()]
    assert sizes[0] * sizes[1] == 8
    assert plan["fastest"]["peak"] <= plan["card"]["room"] < plan["peak"]
    assert not plan["card"]["fits"]


def test_where_nothing_fits_that_is_told(capsys):
    text = planned(capsys, "glm-4-9b", "--train_type", "full", "--gpu", "t4", "--max_len", "200000")
    assert "nothing of the same model and tuner fits" in text


def test_offload_moves_the_optimizer_to_the_host(capsys):
    here, there = (
        figures(capsys, "chatglm2-6b", "--train_type", "freeze", "--ds_file", file)
        for file in ("zero2", "zero2_offload")
    )
    assert here["host_bytes"]["optimizer"] == 0
    assert there["gpu_bytes"]["optimizer"] == 0
    assert there["host_bytes"]["optimizer"] == here["gpu_bytes"]["optimizer"]
    assert there["peak"] < here["peak"]


def test_fewer_bits_and_checkpointing_take_less(capsys):
    plain = figures(capsys, "chatglm3-6b")
    assert figures(capsys, "chatglm3-6b", "--quantization_bit", "4")["gpu_bytes"]["weights"] < 4.3e9
    again = figures(capsys, "chatglm3-6b", "--gradient_checkpointing")
    assert again["gpu_bytes"]["activations"] < 0.1 * plain["gpu_bytes"]["activations"]
    assert again["time"]["epoch"] > plain["time"]["epoch"]


def test_a_bound_on_tokens_bounds_the_micro_batch(capsys):
    plan = figures(capsys, "chatglm2-6b", "--max_len", "1000", "--max_tokens_per_batch", "4096")
    assert plan["batch"]["tokens"] == 4000


def test_traffic_between_hosts_shows_where_more_gpus_stop_helping(capsys):
    flags = ["--train_type", "full", "--ds_file", "zero3", "--per_device_train_batch_size", "1"]
    text = planned(capsys, "chatglm2-6b", "--gpu", "a100", *flags, "--network", "1")
    assert "twice the GPUs, " in text


def test_lengths_come_from_data_where_it_is_given(model_folder, tmp_path, capsys):
    data = tmp_path / "data.json"
    rows = [{"instruction": "云川岭溪" * n, "output": "泉峰"} for n in range(1, 9)]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    plan = figures(
        capsys, str(model_folder), "--train_path", str(data), "--per_device_train_batch_size", "3", "--mode", "glm2"
    )
    assert plan["batch"]["documents"] == 3
    assert plan["time"]["rows"] == 8
    assert plan["batch"]["supervised"] == 3 * 4  # two characters, what stands before them, and the end token


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "name a model's folder or one of chatglm-6b, chatglm2-6b"),
        (["chatglm9"], "chatglm9: is neither a model's folder nor one of"),
        (["chatglm2-6b", "--gpu", "a1000"], "--gpu a1000: is neither a number of GiB nor one of"),
        (["chatglm2-6b", "--gpu", "-3"], "--gpu"),
        (["chatglm2-6b", "--gpu", "0.5"], "--gpu 0.5: must be more than 1"),
        (["chatglm2-6b", "--gpus", "0"], "--gpus 0: must be at least 1"),
        (["chatglm2-6b", "--flops", "nan"], "--flops nan: must be"),
        (["chatglm2-6b", "--train_type", "loar"], "--train_type loar: is none of"),
        (
            ["chatglm2-6b", "--lora_module_name", "qkv"],
            "--lora_module_name qkv: matches no linear module; valid names are",
        ),
        (["chatglm2-6b", "--train_type", "freeze", "--freeze_last_n", "99"], "--freeze_last_n 99: the model has 28"),
        (["chatglm2-6b", "--train_type", "freeze", "--freeze_module_name", "xyz"], "xyz: matches no parameter"),
        (["chatglm2-6b", "--train_type", "full", "--quantization_bit", "4"], "does not go with --train_type full"),
        (["chatglm2-6b", "--train_path", "a.json"], "--train_path: lengths in tokens need the tokenizer"),
        (["chatglm2-6b", "--max_len", "10", "--answer_len", "10"], "--answer_len 10: leaves nothing of rows of 10"),
        (["chatglm2-6b", "--ds_file", "zero9"], "--ds_file zero9: no such file"),
        (["chatglm2-6b", "--pipeline_stages", "2"], "--pipeline_stages 2: plans are of all layers on every rank"),
        (["tests"], "tests: holds no config.json"),
    ],
)
def test_bad_input_is_one_line(argv, part, capsys):
    assert main(["plan", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert part in lines[0]


def test_every_card_is_found_by_its_name():
    assert all(find_card(name).name == name for name in CARDS)
    assert find_card("A100").memory > 79
    assert find_card("24GB").memory == 24
