"""Folders in the official layout: what loads, what is refused in one line, and what comes out again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.official_layout import SMALL, VOCABULARY_FILES, make_checkpoint
from glmft.errors import CheckpointError, ConfigError
from glmft.family import FAMILIES
from glmft.models.loading import (
    fingerprint,
    load_config,
    load_model,
    meta_model,
    read_tensors,
    require_fit,
    weight_files,
)
from glmft.weights import open_weights

WORDS = "transformer.embedding.word_embeddings.weight"


def load(folder):
    return load_model(load_config(folder), folder, torch.float32)


def as_bins(folder, target):
    """The same folder as the official ones are: two .bin shards and an index."""
    shutil.copytree(folder, target)
    (target / "model.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, target / shard)
        index.update(dict.fromkeys(part, shard))
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
    (target / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    return target


def change(folder, **changes):
    """Rewrite the weights with some tensors replaced, or left out where None is given."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors", {"format": "pt"})


def test_what_is_saved_comes_back_bit_for_bit(model_folder):
    model = load(model_folder)
    stored = load_file(model_folder / "model.safetensors")
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    model.save_pretrained(model_folder / "again")
    assert (model_folder / "again" / "model.safetensors").read_bytes() == (
        model_folder / "model.safetensors"
    ).read_bytes()


def test_sharded_bin_files_load_as_safetensors_do(model_folder, tmp_path):
    bins = as_bins(model_folder, tmp_path / "bins")
    assert [file.name for file in weight_files(bins)] == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    ours, theirs = load(bins).state_dict(), load(model_folder).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert fingerprint(bins) == fingerprint(model_folder)
    assert read_tensors(bins, [WORDS, "nothing"]).keys() == {WORDS}


def test_a_pickle_that_would_run_code_is_refused(model_folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (model_folder / "model.safetensors").unlink()
    torch.save({WORDS: Bomb()}, model_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load(model_folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_truncated_file_is_named(kind, model_folder, tmp_path):
    folder = as_bins(model_folder, tmp_path / "bins") if kind == "bin" else model_folder
    file = weight_files(folder)[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for read in (load, fingerprint):
        with pytest.raises(CheckpointError) as caught:
            read(folder)
        [line] = caught.value.problems
        assert str(file) in line
        assert "copy it again" in line


def test_a_missing_shard_is_named(model_folder, tmp_path):
    bins = as_bins(model_folder, tmp_path / "bins")
    (bins / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00002\.bin .* is missing"):
        weight_files(bins)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": ["a.bin"]}', '{"weight_map": null}'])
def test_an_index_that_names_no_shard_is_named(index, model_folder, tmp_path):
    bins = as_bins(model_folder, tmp_path / "bins")
    (bins / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    for read in (load, fingerprint):
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin\.index\.json: has no weight_map; copy it again"):
            read(bins)


def test_no_weights_at_all(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        weight_files(model_folder)


def test_missing_unexpected_and_misshaped_tensors_are_named(model_folder):
    good = load_file(model_folder / "model.safetensors")
    cases = {
        "is missing from the weights": {"transformer.encoder.layers.1.mlp.dense_4h_to_h.weight": None},
        "belongs to no part of the model": {"transformer.encoder.layers.9.mlp.dense_4h_to_h.weight": torch.ones(2)},
        "has another shape": {"transformer.encoder.layers.1.mlp.dense_4h_to_h.weight": torch.ones(2, 3)},
    }
    for message, changes in cases.items():
        save_file(good, model_folder / "model.safetensors", {"format": "pt"})
        change(model_folder, **changes)
        with pytest.raises(CheckpointError, match=message) as caught:
            load(model_folder)
        assert next(iter(changes)) in caught.value.problems[0]


def test_five_of_many_tensors_are_named_and_the_rest_are_counted():
    with pytest.raises(CheckpointError) as caught:
        require_fit(Path("base"), [f"m{i}" for i in range(4)], ["u"], ["s [1] has another shape"])
    assert list(caught.value.problems) == [
        *(f"base: m{i} is missing from the weights" for i in range(4)),
        "base: u belongs to no part of the model",
        "base: and 1 more",
    ]
    with pytest.raises(CheckpointError) as caught:
        require_fit(Path("base"), [f"m{i}" for i in range(5)], [], [])
    assert len(caught.value.problems) == 5
    require_fit(Path("base"), [], [], [])


@pytest.mark.parametrize("family", ["glm", "glm2"])
def test_a_fingerprint_tells_bases_apart_and_not_places(family, official_folders, tmp_path):
    """By the shape, the embedding, the first attention and the last feed-forward layer."""
    folder = official_folders[family]
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(folder)
    stored = {name: tensor for file in weight_files(folder) for name, tensor in open_weights(file).items()}
    layers = "transformer.layers" if family == "glm" else "transformer.encoder.layers"
    attention = "attention" if family == "glm" else "self_attention"
    last = load_config(folder).num_layers - 1
    seen = {fingerprint(folder)}
    for name in (
        "transformer.word_embeddings.weight" if family == "glm" else WORDS,
        f"{layers}.0.{attention}.query_key_value.weight",
        f"{layers}.{last}.mlp.dense_4h_to_h.weight",
    ):
        shutil.rmtree(tmp_path / "copy")
        shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.bin*"))
        changed = stored[name].clone()
        changed[-1, 0] += 1
        torch.save({**stored, name: changed}, tmp_path / "copy" / "pytorch_model.bin")
        seen.add(fingerprint(tmp_path / "copy"))
    assert len(seen) == 4
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "num_attention_heads": 2 * config["num_attention_heads"]})
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(text, encoding="utf-8")
    assert fingerprint(tmp_path / "other") not in seen


def test_a_prefix_alone_is_no_model(model_folder):
    """What the official P-Tuning script saves: config.json, and a pytorch_model.bin that holds the prefix alone."""
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    (model_folder / "config.json").write_text(json.dumps({**config, "pre_seq_len": 4, "prefix_projection": False}))
    (model_folder / "model.safetensors").unlink()
    prefix = {"transformer.prefix_encoder.embedding.weight": torch.ones(4, 3 * 2 * 2 * 16)}
    torch.save(prefix, model_folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"holds a P-Tuning prefix and no model; .*--ptuning_checkpoint"
    ) as caught:
        load(model_folder)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list, not a JSON object"),
        ('{"model_type": "llama"}', "model_type is 'llama', none of chatglm, glm, glm4"),
        ('{"model_type": "chatglm", "num_attention_heads": 5, "glmft_family": "glm2"}', "5 is no multiple of"),
        ('{"model_type": "chatglm", "kv_channels": 6, "glmft_family": "glm2"}', "kv_channels 6 is no multiple of 4"),
    ],
)
def test_a_config_that_cannot_be_used(text, message, model_folder):
    (model_folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(model_folder)


def test_every_official_key_survives_the_round_trip(model_folder):
    official = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    official.update(
        {
            "_name_or_path": "THUDM/chatglm2-6b",
            "architectures": ["ChatGLMModel"],
            "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
            "apply_query_key_layer_scaling": True,
            "fp32_residual_connection": False,
            "quantization_bit": 0,
            "temperature": 0.95,
            "torch_dtype": "float16",
        }
    )
    (model_folder / "config.json").write_text(json.dumps(official), encoding="utf-8")
    model = load_model(load_config(model_folder), model_folder, torch.float16)
    model.save_pretrained(model_folder / "again")
    again = json.loads((model_folder / "again" / "config.json").read_text(encoding="utf-8"))
    changed = {key: (value, again.get(key)) for key, value in official.items() if again.get(key) != value}
    assert changed.pop("dtype") == ("float32", "float16")  # the key of current transformers follows the weights
    assert not changed


def test_the_meta_model_has_the_names_and_shapes_of_the_real_one(model_folder):
    config = load_config(model_folder)
    meta, real = meta_model(config).state_dict(), load(model_folder).state_dict()
    assert {n: t.shape for n, t in meta.items()} == {n: t.shape for n, t in real.items()}
    assert all(t.is_meta for t in meta.values())


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat"])
def test_names_and_size_at_full_depth_equal_the_official_index(name, shared):
    folder = shared / "official" / name
    index = "model.safetensors.index.json" if name.startswith("glm-4") else "pytorch_model.bin.index.json"
    official = json.loads((folder / index).read_text(encoding="utf-8"))
    config = load_config(folder)
    if config.family == "glm":
        config.vocab_size = 150528  # the index is of the first revision, with 20,000 image tokens
    state = meta_model(config).state_dict()
    assert state.keys() == official["weight_map"].keys()
    # float16; the first generation counted its layer norms, which the second does not have in that form, in float32
    sizes = {n: t.numel() * (4 if config.family == "glm" and "layernorm" in n else 2) for n, t in state.items()}
    assert sum(sizes.values()) == official["metadata"]["total_size"]


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat"])
def test_the_generator_of_official_folders_writes_the_official_files(name, shared, tmp_path):
    folder = shared / "official" / name
    family = load_config(folder).family
    file = VOCABULARY_FILES[family]
    make_checkpoint(tmp_path / "made", family, (folder / file).read_bytes(), {**SMALL[family], "num_layers": 1})
    for text in ("config.json", "tokenizer_config.json"):
        ours, theirs = (json.loads((f / text).read_text(encoding="utf-8")) for f in (tmp_path / "made", folder))
        changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        assert changed <= {*SMALL[family], "num_layers"} | ({"chat_template"} if family == "glm4" else set())
    assert (tmp_path / "made" / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_official_folders_load_and_come_back_with_every_name_and_byte(family, official_folders, tmp_path):
    folder = official_folders[family]
    stored: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        stored |= torch.load(file, weights_only=True)
    model = load_model(load_config(folder), folder, torch.float16)
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert len(weight_files(folder)) > 1
    for name, tensor in stored.items():
        if "inv_freq" not in name:  # random numbers in these folders, fixed ones in the model
            assert again[name].dtype == tensor.dtype
            assert torch.equal(again[name], tensor), name


def test_a_head_that_is_not_the_embedding_is_left_out_with_a_warning_as_the_official_code_ties_them(
    official_folders, tmp_path, caplog
):
    folder = tmp_path / "glm"
    shutil.copytree(official_folders["glm"], folder, ignore=shutil.ignore_patterns("*model-*.bin", "*.index.json"))
    tensors = read_tensors(official_folders["glm"], meta_names(official_folders["glm"]))
    torch.save({**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for bits in (None, "4"):
        caplog.clear()
        model = load_model(load_config(folder, quantization_bit=bits), folder, torch.float32)
        assert model.lm_head.weight is model.transformer.word_embeddings.weight
        assert "lm_head.weight is not the embedding's; it is left out" in caplog.text
        caplog.clear()
        load_model(load_config(official_folders["glm"], quantization_bit=bits), official_folders["glm"], torch.float32)
        assert not caplog.text
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")
    model = load(folder)
    torch.testing.assert_close(model.lm_head.weight, model.transformer.word_embeddings.weight + 1, atol=1e-3, rtol=0)
    assert not caplog.text


def meta_names(folder):
    return meta_model(load_config(folder)).state_dict().keys()


def test_whoever_may_read_a_folder_may_read_the_weights_that_are_saved_in_it(official_folders, tmp_path):
    """safetensors writes for the owner alone."""
    for family in ("glm", "glm2"):
        load(official_folders[family]).save_pretrained(tmp_path / family, max_shard_size="100KB")
        files = list((tmp_path / family).glob("*.safetensors"))
        assert len(files) > 1
        assert {file.stat().st_mode & 0o777 for file in files} == {(tmp_path / family).stat().st_mode & 0o666}
