import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from adapters import trained
from safetensors.torch import load_file

import glmft
from examples.quickstart.run import ROOT
from glmft.commands.merge import merge
from glmft.errors import CheckpointError, ConfigError
from glmft.family import FAMILIES
from glmft.models.loading import load_config, load_model, record_of, stored_dtype, weight_files
from glmft.settings.tools import MergeConfig
from glmft.tuners import merging
from glmft.tuners.freeze import Freeze
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt
from glmft.weights import StoredTensors

SLOW = pytest.mark.slow


def described(folder):
    return record_of(load_config(folder), folder)


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


KINDS = [
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"init_lora_weights": "pissa"},
    {"modules_to_save": "final_layernorm"},
]
OF_FAMILIES = [
    pytest.param(options, family, id=f"{options}-{family}", marks=[] if not options or family == "glm2" else SLOW)
    for options in KINDS
    for family in [*FAMILIES, "native-glm", "native-glm4"]
]


@pytest.mark.parametrize(("options", "family"), OF_FAMILIES)
def test_every_kind_of_lora_merges_on_every_family(options, family, all_folders, tmp_path):
    """Folders of both layouts, sharded, in half precision, which the merged model stays in."""
    base = all_folders[family]
    if family.startswith("native"):
        options = {name: "norm" if name == "modules_to_save" else value for name, value in options.items()}
    tuner = Lora(2, 4, 0.0, "all-linear", **options)
    folder = tmp_path / "adapter"
    model = trained(tuner, base, folder, seed=1, scale=0.02)
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


def logits_of(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer(["云川岭溪"], return_tensors="pt")).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuner", [Prefix(3, True, 20), Prefix(3, False), Freeze("layers.0.")], ids=str)
def test_a_prefix_and_trained_weights_become_part_of_a_whole_model(tuner, family, official_folders, tmp_path):
    base = official_folders[family]
    model = trained(tuner, base, tmp_path / "run")
    out = merge(MergeConfig(model_dir=str(tmp_path / "run"), format="bin" if family == "glm2" else "safetensors"))
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["pre_seq_len"] == (3 if isinstance(tuner, Prefix) else None)
    assert not config["prefix_projection"]
    assert (out / "pytorch_model.bin").is_file() == (family == "glm2")
    merged, tokenizer = glmft.load(out, dtype="fp32", device="cpu")
    assert ("transformer.prefix_encoder.embedding.weight" in merged.state_dict()) == isinstance(tuner, Prefix)
    torch.testing.assert_close(logits_of(merged, tokenizer), logits_of(model, tokenizer), atol=0.01, rtol=0.01)


def test_a_full_run_becomes_a_folder_in_the_bases_format_with_the_bases_files(official_folders, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(official_folders["glm3"], base)
    (base / "modeling_chatglm.py").write_text("# official\n", encoding="utf-8")
    model = trained(Full(), base, tmp_path / "run")
    (tmp_path / "run" / "train_config.json").write_text("{}", encoding="utf-8")
    out = merge(MergeConfig(model_dir=str(tmp_path / "run")))
    assert (out / "modeling_chatglm.py").is_file()
    assert not (out / "train_config.json").exists()
    assert stored_dtype(out) == torch.float16
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["torch_dtype"] == "float16"
    loaded, tokenizer = glmft.load(out, dtype="fp32", device="cpu")
    torch.testing.assert_close(logits_of(loaded, tokenizer), logits_of(model, tokenizer), atol=0.01, rtol=0.01)


def test_what_cannot_be_a_whole_model_is_refused_with_the_reason(official_folders, native_folders, tmp_path):
    base = official_folders["glm2"]
    trained(Prompt(3, "none"), base, tmp_path / "prompt")
    with pytest.raises(ConfigError, match="no official model has a place for"):
        merge(MergeConfig(model_dir=str(tmp_path / "prompt")))
    trained(Prefix(3, False), native_folders["native-glm"], tmp_path / "prefix")
    with pytest.raises(ConfigError, match=r"knows no pre_seq_len; .*official-ptuning"):
        merge(MergeConfig(model_dir=str(tmp_path / "prefix")))
    with pytest.raises(ConfigError, match="holds a whole model and no adapter"):
        merge(MergeConfig(model_dir=str(base)))
    for several in (f"{tmp_path / 'prompt'}:0.5", f"{tmp_path / 'prefix'}:1,{tmp_path / 'prefix'}:2"):
        with pytest.raises(ConfigError, match="weights and several adapters are for LoRA"):
            merge(MergeConfig(model_dir=several))


@pytest.mark.parametrize("second", [{}, {"use_dora": True}, {"modules_to_save": "final_layernorm"}], ids=str)
def test_several_adapters_add_up_with_their_weights(second, official_folders, tmp_path):
    base = official_folders["glm2"]
    alone = []
    for name, tuner in (
        ("a", Lora(2, 4, 0.0, "all-linear")),
        ("b", Lora(3, 5, 0.0, "dense", use_rslora=True, **second)),
    ):
        trained(tuner, base, tmp_path / name)
        out = merge(MergeConfig(model_dir=str(tmp_path / name), output_dir=str(tmp_path / f"{name}-alone")))
        alone.append(load_file(out / "model.safetensors"))
    mixed = merge(
        MergeConfig(model_dir=f"{tmp_path / 'a'}:0.7,{tmp_path / 'b'}:-0.3", output_dir=str(tmp_path / "mixed"))
    )
    plain = StoredTensors(weight_files(base))
    for name, tensor in load_file(mixed / "model.safetensors").items():
        start = plain[name].float()
        expected = start + 0.7 * (alone[0][name].float() - start) - 0.3 * (alone[1][name].float() - start)
        torch.testing.assert_close(tensor.float(), expected, atol=2e-3, rtol=2e-3, msg=name)


def test_one_of_two_tied_matrices_that_was_trained_alone_parts_from_the_other(official_folders, tmp_path):
    """Else the head would follow the embedding, which the adapter's model never had it do."""
    base = official_folders["glm"]
    model = trained(Lora(2, 4, 0.0, "word_embeddings"), base, tmp_path / "run")
    out = merge(MergeConfig(model_dir=str(tmp_path / "run")))
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False
    merged, tokenizer = glmft.load(out, dtype="fp32", device="cpu")
    torch.testing.assert_close(logits_of(merged, tokenizer), logits_of(model, tokenizer), atol=0.01, rtol=0.01)


def test_what_is_untouched_is_carried_bit_by_bit_and_what_changed_is_rounded_once(official_folders, tmp_path):
    base = official_folders["glm2"]
    trained(Lora(2, 4, 0.0, "query_key_value"), base, tmp_path / "run")
    out = merge(MergeConfig(model_dir=str(tmp_path / "run")))
    stored, adapter = StoredTensors(weight_files(base)), load_file(tmp_path / "run" / "adapter_model.safetensors")
    for name, tensor in load_file(out / "model.safetensors").items():
        key = f"base_model.model.{name.removesuffix('weight')}lora_"
        expected = stored[name]
        if f"{key}A.weight" in adapter:
            exact = expected.double() + 2 * adapter[f"{key}B.weight"].double() @ adapter[f"{key}A.weight"].double()
            spacing = (torch.nextafter(tensor.abs(), tensor.abs() + 1) - tensor.abs()).double()
            assert ((tensor.double() - exact).abs() <= 0.51 * spacing).all()
        else:
            assert torch.equal(tensor, expected)


def test_a_written_model_that_computes_something_else_is_not_kept(official_folders, tmp_path, monkeypatch):
    trained(Lora(2, 4, 0.0, "all-linear"), official_folders["glm2"], tmp_path / "run")
    monkeypatch.setattr(merging, "NUMBERS", 100)  # many parts
    config = MergeConfig(model_dir=str(tmp_path / "run"))
    real = merging._low_rank

    def doubled(stored, name, layer):
        change = real(stored, name, layer)
        return lambda base, first, end: base + 9 * (change(base, first, end) - base)

    with monkeypatch.context() as patch:
        patch.setattr(merging, "_low_rank", doubled)
        with pytest.raises(CheckpointError, match=r"computes something else: logits over \d+ tokens differ"):
            merge(config)
    assert not list((tmp_path / "run").glob("*merged*"))
    assert not list((tmp_path / "run").glob(".*"))
    said = []
    merge(config, said.append)
    assert re.fullmatch(r"logits over \d+ tokens differ by at most [\d.e-]+ \(allowed [\d.e-]+\)", said[0])


def test_weights_are_written_in_shards_that_no_one_needs_whole(official_folders, tmp_path):
    trained(Lora(2, 4, 0.0, "all-linear"), official_folders["glm3"], tmp_path / "run")
    for ending, name in (("safetensors", "model"), ("bin", "pytorch_model")):
        out = merge(
            MergeConfig(
                model_dir=str(tmp_path / "run"),
                output_dir=str(tmp_path / ending),
                max_shard_size="100KB",
                format=ending,
                verify=False,
            )
        )
        index = json.loads((out / f"{name}.{ending}.index.json").read_text(encoding="utf-8"))
        files = sorted(out.glob(f"{name}-*-of-*.{ending}"))
        assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
        assert len(files) > 1
        assert all(file.stat().st_mode & 0o777 == out.stat().st_mode & 0o666 for file in files)
        loaded, tokenizer = glmft.load(out, dtype="fp32", device="cpu")
        assert logits_of(loaded, tokenizer).isfinite().all()


def test_a_disk_without_room_and_another_base_are_one_line(adapter, model_folder, official_folders, monkeypatch):
    with pytest.raises(ConfigError, match=r"trained on another base than .*; give the right one by --ori_model_dir"):
        merge(MergeConfig(str(official_folders["glm2"]), str(adapter)))
    with pytest.raises(ConfigError, match=r"its base model is not at .*; say where with --ori_model_dir"):
        merge(MergeConfig(str(model_folder / "nowhere"), str(adapter)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"takes 0.0 GB, the disk has 0.0 GB left; free some space"):
        merge(MergeConfig(model_dir=str(adapter)))


KILLED = """
import glmft, sys
glmft.quiet()
import glmft.inference.verification, glmft.tokenizers.loading, glmft.tuners.merging
from glmft.commands.merge import merge
from glmft.settings.tools import MergeConfig
print("ready", flush=True)
merge(MergeConfig(model_dir=sys.argv[1]))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_no_half_folder(official_folders, tmp_path):
    trained(Lora(2, 4, 0.0, "all-linear"), official_folders["glm2"], tmp_path / "run")
    target = tmp_path / "run" / "merged"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]

    def run(seconds):
        """Merge, and kill it after a time; how long it took."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
            process.stdout.readline()
            began = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
        return time.monotonic() - began

    took = run(None)
    expected = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    for i in range(12):
        shutil.rmtree(target, ignore_errors=True)
        run(took * (i + 1) / 12)
        if target.exists():
            assert {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()} == expected
    shutil.rmtree(target, ignore_errors=True)
    run(None)
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()} == expected
    assert not list((tmp_path / "run").glob(".writing-*"))


def test_missing_folders_and_foreign_adapters_are_one_line(adapter, model_folder, tmp_path):
    with pytest.raises(ConfigError, match="--model_dir: name the folder"):
        merge(MergeConfig())
    with pytest.raises(ConfigError, match="no such folder"):
        merge(MergeConfig(model_dir=str(tmp_path / "nowhere")))
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="torn or no weight file"):
        merge(MergeConfig(model_dir=str(adapter)))
    assert not (adapter / "merged").exists()
