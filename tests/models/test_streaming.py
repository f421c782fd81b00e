"""Folders over integers: the official ones as they are, and full-precision ones that become integers on the way in."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import glmft
from examples.official_layout import SMALL, make_checkpoint, write_weights
from glmft.errors import CheckpointError, ConfigError
from glmft.models.loading import load_config, load_model, meta_model, weight_files
from glmft.models.quantised import quantised_layers

LAYERS = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, as they are in its files."""
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        found |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    return found


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


def official(source: Path, target: Path, bits: int) -> Path:
    """What the official `model.quantize(bits)` and `save_pretrained` make of a folder, computed by numpy."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.bin*"))
    state = {}
    for name, tensor in stored(source).items():
        if not name.endswith(LAYERS):
            state[name] = tensor
            continue
        weight = tensor.numpy()
        scale = numpy.abs(weight).max(axis=1) / numpy.float16(2 ** (bits - 1) - 1)
        whole = numpy.rint(weight / scale[:, None]).astype(numpy.int8)
        if bits == 4:
            whole = ((whole[:, ::2].view(numpy.uint8) << 4) | (whole[:, 1::2].view(numpy.uint8) & 15)).view(numpy.int8)
        state[name], state[f"{name}_scale"] = torch.from_numpy(whole), torch.from_numpy(scale)
    write_weights(target, state, max_shard_size="60KB")
    change_config(target, quantization_bit=bits)
    return target


def quantising(folder: Path, bits: int, dtype: torch.dtype = torch.float32):
    config = load_config(folder)
    config.quantization_bit = bits
    return load_model(config, folder, dtype)


@pytest.mark.parametrize("family", ["glm", "glm2", "glm3"])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_official_quantised_folder_is_what_quantising_while_loading_gives(bits, family, official_folders, tmp_path):
    folder = official(official_folders[family], tmp_path / "official", bits)
    assert len(weight_files(folder)) > 1
    as_stored = load_model(load_config(folder), folder, torch.float32)
    while_loading = quantising(official_folders[family], bits)
    expected = while_loading.state_dict()
    assert as_stored.state_dict().keys() == expected.keys()
    assert as_stored.config.quantisation == while_loading.config.quantisation == str(bits)
    for name, tensor in as_stored.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype, name
    scales = {module.weight_scale.dtype for _, module in quantised_layers(as_stored)}
    assert scales == {torch.float16}


@pytest.mark.parametrize("family", ["glm", "glm2"])
def test_what_is_saved_has_every_name_format_and_byte_of_the_official_folder(family, official_folders, tmp_path):
    folder = official(official_folders[family], tmp_path / "official", 4)
    load_model(load_config(folder), folder, torch.float16).save_pretrained(tmp_path / "again")
    before, again = stored(folder), stored(tmp_path / "again")
    assert again.keys() == before.keys()
    for name in again.keys() - {name for name in again if "inv_freq" in name}:
        assert again[name].dtype == before[name].dtype
        assert torch.equal(again[name], before[name]), name
    assert json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))["quantization_bit"] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_auto_classes_load_it_too_and_round_no_scale(dtype, official_folders, tmp_path):
    folder = official(official_folders["glm2"], tmp_path / "official", 8)
    ours = load_model(load_config(folder), folder, dtype).state_dict()
    theirs = AutoModel.from_pretrained(folder, dtype=dtype).state_dict()
    assert glmft.__version__  # importing it registers the classes
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name].to(tensor.dtype)), name
        assert tensor.dtype == (torch.float32 if name.endswith("weight_scale") else ours[name].dtype), name


def test_only_the_layers_become_integers(official_folders):
    model = quantising(official_folders["glm2"], 4, torch.bfloat16)
    of_layers = {f"{name}.weight" for name, _ in quantised_layers(model)}
    floats = load_model(load_config(official_folders["glm2"]), official_folders["glm2"], torch.bfloat16).state_dict()
    for name, tensor in model.state_dict().items():
        if name in of_layers:
            assert tensor.dtype == torch.int8
            assert name.endswith(LAYERS)
        elif not name.endswith("weight_scale"):
            assert torch.equal(tensor, floats[name])


def test_a_generated_folder_in_the_quantised_layout_loads(vocabularies, tmp_path):
    shape = {**SMALL["glm"], "quantization_bit": 4, "quantization_embeddings": False}
    folder = make_checkpoint(tmp_path / "made", "glm", vocabularies["glm"], shape)
    before, after = stored(folder), load_model(load_config(folder), folder, torch.float16).state_dict()
    assert before.keys() == after.keys()
    assert before["transformer.layers.0.mlp.dense_4h_to_h.weight"].dtype == torch.int8
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "inv_freq" not in name)


NAME = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
BROKEN = {
    f"{NAME} is missing from the weights": {NAME: None},
    f"{NAME}_scale is missing from the weights": {f"{NAME}_scale": None},
    "belongs to no part of the model": {NAME.replace(".1.", ".9."): torch.ones(2, dtype=torch.int8)},
    "has another shape than config.json says": {NAME: torch.ones(2, 3, dtype=torch.int8)},
    "has a weight_scale beside it and is not int8": {NAME: torch.ones(48, 20)},
}


@pytest.mark.parametrize("problem", BROKEN)
def test_integers_that_do_not_fit_are_named(problem, official_folders, tmp_path):
    folder = official(official_folders["glm2"], tmp_path / "official", 4)
    state = {**stored(folder), **BROKEN[problem]}
    for file in weight_files(folder):
        file.unlink()
    (folder / "pytorch_model.bin.index.json").unlink()
    write_weights(folder, {name: tensor for name, tensor in state.items() if tensor is not None})
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_model(load_config(folder), folder, torch.float32)
    assert next(iter(BROKEN[problem])) in caught.value.problems[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_bit": 3}, "quantization_bit is 3; it must be one of"),
        ({"quantization_bit": "4"}, "quantization_bit is '4'; it must be one of"),
        ({"quantization_bit": 4, "quantization_embeddings": True}, "quantization_embeddings true is not supported"),
    ],
)
def test_a_quantisation_that_is_not_known_is_refused(changes, message, official_folders, tmp_path):
    shutil.copytree(official_folders["glm"], tmp_path / "folder")
    change_config(tmp_path / "folder", **changes)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "folder")


def test_a_prefix_that_the_config_tells_of_and_no_file_holds_is_made_anew(official_folders, tmp_path):
    shutil.copytree(official_folders["glm2"], tmp_path / "folder")
    change_config(tmp_path / "folder", quantization_bit=4, pre_seq_len=3, prefix_projection=False)
    model = load_model(load_config(tmp_path / "folder"), tmp_path / "folder", torch.float32)
    assert model.transformer.prefix_encoder.embedding.weight.std() > 0.5
    assert model(torch.tensor([[5, 6]])).logits.isfinite().all()


def test_the_meta_model_has_the_names_and_shapes_of_the_real_one(official_folders):
    config = load_config(official_folders["glm"])
    config.quantization_bit = 4
    real = quantising(official_folders["glm"], 4).state_dict()
    assert {n: t.shape for n, t in meta_model(config).state_dict().items()} == {n: t.shape for n, t in real.items()}
