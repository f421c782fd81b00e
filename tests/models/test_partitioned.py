"""The errors of loading under ZeRO-3; that the weights are right is shown by whole runs in tests/integration."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmft.errors import CheckpointError
from glmft.models.loading import load_config, meta_model, weight_files
from glmft.models.streaming import require_tensors
from glmft.weights import StoredTensors


def check(folder) -> None:
    require_tensors(meta_model(load_config(folder)), StoredTensors(weight_files(folder)), folder)


def problems_of(folder) -> list[str]:
    with pytest.raises(CheckpointError) as error:
        check(folder)
    return error.value.problems


def test_a_folder_in_the_official_layout_is_accepted(official_folders):
    for folder in official_folders.values():
        check(folder)


def test_tensors_are_read_as_the_files_hold_them(model_folder):
    stored, held = StoredTensors(weight_files(model_folder)), load_file(model_folder / "model.safetensors")
    assert stored.files.keys() == held.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in held.items())


def test_missing_unexpected_and_misshapen_tensors_are_named(model_folder):
    file = model_folder / "model.safetensors"
    held = load_file(file)
    name = "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"
    gone = "transformer.encoder.final_layernorm.weight"
    held[name] = held[name][:3].contiguous()
    del held[gone]
    save_file({**held, "transformer.extra": torch.ones(1)}, file, metadata={"format": "pt"})
    missing, unexpected, shape = problems_of(model_folder)
    assert missing.endswith(f"{gone} is missing from the weights")
    assert unexpected.endswith("transformer.extra belongs to no part of the model")
    assert f"{name} [3, 48] has another shape than config.json says" in shape


def test_a_torn_file_is_one_line(model_folder):
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: is torn or no weight file"):
        check(model_folder)
