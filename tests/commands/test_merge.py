import hashlib

import pytest
import torch

import glmft
from glmft.commands.merge import merge
from glmft.errors import CheckpointError, ConfigError
from glmft.family import FAMILIES
from glmft.models.loading import fingerprint, load_config, load_model
from glmft.settings.tools import MergeConfig
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix


def described(folder):
    return {
        "family": load_config(folder).family,
        "base_model_name_or_path": str(folder),
        "base_fingerprint": fingerprint(folder),
    }


@pytest.fixture
def adapter(model_folder, tmp_path):
    tuner, folder = Lora(4, 8, 0.0, "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"), tmp_path / "adapter"
    folder.mkdir()
    model = tuner.apply(load_model(load_config(model_folder), model_folder, torch.float32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    tuner.save(model, tuner.state(model), folder, described(model_folder))
    return folder


def hashes(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_the_merged_model_is_complete_and_computes_what_the_adapter_does(adapter, model_folder, tmp_path):
    before = hashes(model_folder) | hashes(adapter)
    (model_folder / "modeling_chatglm.py").write_text("# the official code\n", encoding="utf-8")
    out = merge(MergeConfig(str(model_folder), str(adapter), "glm2", str(tmp_path / "merged")))
    assert out == tmp_path / "merged"
    assert {p: h for p, h in (hashes(model_folder) | hashes(adapter)).items() if p in before} == before
    assert (out / "modeling_chatglm.py").is_file()
    ids = torch.arange(3, 20)[None]
    merged, tokenizer = glmft.load(out, dtype="fp32", device="cpu")
    tuned, _ = glmft.load(adapter, dtype="fp32", device="cpu")
    torch.testing.assert_close(merged(ids).logits, tuned(input_ids=ids).logits, atol=2e-5, rtol=1e-4)
    assert (
        merged.state_dict().keys()
        == load_model(load_config(model_folder), model_folder, torch.float32).state_dict().keys()
    )
    assert tokenizer("云川")["input_ids"]


@pytest.mark.parametrize("family", [*FAMILIES, "native-glm", "native-glm4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": "final_layernorm"},
    ],
    ids=str,
)
def test_every_kind_of_lora_merges_on_every_family(options, family, all_folders, tmp_path):
    """Folders of both layouts, sharded, in half precision, which the merged model stays in."""
    base = all_folders[family]
    if family.startswith("native"):
        options = {name: "norm" if name == "modules_to_save" else value for name, value in options.items()}
    tuner = Lora(2, 4, 0.0, "all-linear", **options)
    model = tuner.apply(load_model(load_config(base), base, torch.float32)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path / "adapter"
    folder.mkdir()
    tuner.save(model, tuner.state(model), folder, described(base))
    merged, tokenizer = glmft.load(merge(MergeConfig(model_dir=str(folder))), dtype="fp32", device="cpu")
    batch = tokenizer(["云川岭溪"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, model(**batch).logits, atol=0.05, rtol=0.05)


def test_the_default_output_lies_in_the_adapter_and_is_never_written_twice(adapter):
    config = MergeConfig(model_dir=str(adapter))
    out = merge(config)
    assert out == adapter / "merged"
    written = hashes(out)
    with pytest.raises(ConfigError, match="exists already; name another folder"):
        merge(config)
    assert hashes(out) == written


@pytest.mark.parametrize("target", ["the base", "the adapter"])
def test_inputs_are_never_the_output(target, adapter, model_folder):
    folder = model_folder if target == "the base" else adapter
    with pytest.raises(ConfigError, match="exists already"):
        merge(MergeConfig(str(model_folder), str(adapter), None, str(folder)))


def test_the_merged_weights_keep_the_bases_number_format(model_folder, tmp_path):
    model = load_model(load_config(model_folder), model_folder, torch.float16)
    model.save_pretrained(tmp_path / "half")
    glmft.load(model_folder)[1].save_pretrained(tmp_path / "half")
    tuner, folder = Lora(4, 8, 0.0, "query_key_value"), tmp_path / "adapter"
    folder.mkdir()
    model = tuner.apply(model)
    tuner.save(model, tuner.state(model), folder, described(tmp_path / "half"))
    out = merge(MergeConfig(model_dir=str(folder)))
    from safetensors.torch import load_file

    assert {t.dtype for n, t in load_file(out / "model.safetensors").items() if "inv_freq" not in n} == {torch.float16}


def test_only_lora_can_be_merged(model_folder, tmp_path):
    tuner, folder = Prefix(4, False), tmp_path / "prefix"
    folder.mkdir()
    model = tuner.apply(load_model(load_config(model_folder), model_folder, torch.float32))
    tuner.save(model, tuner.state(model), folder, described(model_folder))
    for path in (folder, model_folder):
        with pytest.raises(ConfigError, match="holds no LoRA adapter"):
            merge(MergeConfig(model_dir=str(path)))


def test_missing_folders_and_foreign_adapters_are_one_line(adapter, model_folder, tmp_path):
    with pytest.raises(ConfigError, match="--model_dir: name the folder"):
        merge(MergeConfig())
    with pytest.raises(ConfigError, match="no such folder"):
        merge(MergeConfig(model_dir=str(tmp_path / "nowhere")))
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="torn or no weight file"):
        merge(MergeConfig(model_dir=str(adapter)))
    assert not (adapter / "merged").exists()
