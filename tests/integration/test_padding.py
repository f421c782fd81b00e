"""Packing, grouping and a bound of tokens in a run: the loss and the gradient of the same records."""

import pytest
from ranks import NATIVE, SLOW, metrics, train


@pytest.mark.parametrize(
    "family", ["glm", "glm2", "glm3", *(pytest.param(family, marks=SLOW) for family in ("glm4", *NATIVE))]
)
def test_a_whole_epoch_in_one_step_has_the_same_loss_packed_grouped_bounded_or_plain(
    family, all_folders, uneven, tmp_path
):
    ways = {
        "plain": ["--per_device_train_batch_size", "5", "--group_by_length", "False"],
        "grouped": ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3"],
        "bounded": ["--per_device_train_batch_size", "5", "--max_tokens_per_batch", "150"],
        "packed": ["--per_device_train_batch_size", "5", "--packing"],
    }
    common = [
        "--train_path",
        str(uneven),
        "--model_name_or_path",
        str(all_folders[family]),
        "--train_type",
        "full",
    ]
    common += ["--max_len", "150", "--max_src_len", "80", "--max_steps", "1", "--show_loss_step", "1"]
    found = {}
    for way, flags in ways.items():
        (tmp_path / way).mkdir()
        codes, printed = train([*common, *flags, "--output_dir", str(tmp_path / way / "out")], 2, tmp_path / way)
        assert codes == [0, 0], printed
        found[way] = (metrics(tmp_path / way / "out")[0], printed)
    losses = [line["loss"] for line, _ in found.values()]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    norms = [line["grad_norm"] for line, _ in found.values()]
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-4)
    assert "10 documents packed into" in found["packed"][1]
    largest = {way: int(printed.split("micro-batch holds ")[1].split()[0]) for way, (_, printed) in found.items()}
    assert max(largest["grouped"], largest["bounded"]) < largest["plain"]
    assert largest["bounded"] <= 150
