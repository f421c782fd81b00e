"""`glmft quantize` writes the layout of the official INT4 and INT8 folders, and the base stays as it is."""

import hashlib
import json

import pytest
import torch

import glmft
from glmft.cli import main
from glmft.commands.merge import merge
from glmft.commands.quantize import quantize
from glmft.commands.train import base_problems, parameter_table
from glmft.errors import CheckpointError, ConfigError
from glmft.models import nf4
from glmft.models.loading import load_config, load_model, meta_model, record_of
from glmft.models.quantised import quantised_layers
from glmft.settings.tools import MergeConfig, QuantizeConfig
from glmft.tuners.freeze import Freeze
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt

IDS = torch.arange(3, 20)[None]


def hashes(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def adapter(model_folder, tmp_path):
    """Makes a LoRA adapter, trained over the base in a quantisation."""

    def make(quantization_bit=None, base=model_folder):
        tuner, folder = Lora(4, 8, 0.0, "all-linear"), tmp_path / f"adapter-{quantization_bit}"
        folder.mkdir()
        config = load_config(base, quantization_bit=quantization_bit)
        model = tuner.apply(load_model(config, base, torch.float32))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.1)
        tuner.save(model, tuner.state(model), folder, record_of(config, base))
        return folder

    return make


@pytest.fixture
def four_bits(model_folder, tmp_path):
    quantize(QuantizeConfig(str(model_folder), 4, None, str(tmp_path / "four")))
    return tmp_path / "four"


def warnings_of(caplog) -> list[str]:
    found = [record.message for record in caplog.records if record.name == "glmft"]
    caplog.clear()
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_the_folder_is_complete_and_computes_what_quantising_while_loading_does(bits, model_folder, tmp_path, capsys):
    (model_folder / "quantization.py").write_text("# the official code\n", encoding="utf-8")
    before, target = hashes(model_folder), tmp_path / "quantised"
    assert main(["quantize", str(model_folder), "--bits", str(bits), "--output_dir", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert hashes(model_folder) == before
    assert (target / "quantization.py").is_file()
    assert json.loads((target / "config.json").read_text(encoding="utf-8"))["quantization_bit"] == bits
    quantised, tokenizer = glmft.load(target, dtype="fp32", device="cpu")
    expected, _ = glmft.load(model_folder, dtype="fp32", device="cpu", quantization_bit=bits)
    assert torch.equal(quantised(IDS).logits, expected(IDS).logits)
    assert tokenizer("云川")["input_ids"]
    assert len(list(quantised_layers(quantised))) == 12


@pytest.mark.parametrize("family", ["glm", "glm2", "glm3"])
def test_large_folders_are_written_in_shards(family, official_folders, tmp_path):
    quantize(QuantizeConfig(str(official_folders[family]), 8, None, str(tmp_path / "out"), "60KB"))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    again, expected = (
        glmft.load(folder, quantization_bit=8, dtype="fp16", device="cpu")[0].state_dict()
        for folder in (tmp_path / "out", official_folders[family])
    )
    assert again.keys() == expected.keys()
    for name, tensor in again.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype, name


def test_what_cannot_be_quantised_is_one_line(model_folder, four_bits, adapter, tmp_path):
    def refused(**changes):
        settings = {"model_name_or_path": str(model_folder), "output_dir": str(tmp_path / "new"), **changes}
        with pytest.raises((ConfigError, CheckpointError)) as error:
            quantize(QuantizeConfig(**settings))
        assert not (tmp_path / "new").exists()
        [line] = error.value.problems
        return line

    assert "glmft quantize MODEL --bits 4 --output_dir FOLDER" in refused(output_dir=None)
    assert "glmft quantize MODEL --bits 4 --output_dir FOLDER" in refused(model_name_or_path=None)
    assert "is quantised already; name the full-precision base" in refused(model_name_or_path=str(four_bits))
    assert "exists already; name another folder" in refused(output_dir=str(four_bits))
    assert f"is an adapter; quantise its base {model_folder}" in refused(model_name_or_path=str(adapter()))
    assert "--max_shard_size {0}: is no size" in refused(max_shard_size="{0}")
    (model_folder / "model.safetensors").write_bytes(b"torn")
    assert "is torn or no weight file" in refused()


def test_a_flag_that_contradicts_the_folder_is_refused(four_bits):
    assert load_config(four_bits, quantization_bit="4").quantisation == "4"
    for other in ("8", "nf4"):
        with pytest.raises(ConfigError, match=rf"--quantization_bit {other}: .* is quantised already \(4\)"):
            load_config(four_bits, quantization_bit=other)
    with pytest.raises(ConfigError, match="quantization_bit 3: is none of 8, 4, nf4"):
        glmft.load(four_bits, quantization_bit=3)


def test_an_adapter_on_another_quantisation_warns_in_one_line(model_folder, four_bits, adapter, caplog):
    over_four, over_floats = adapter("4"), adapter()
    for options in ({"quantization_bit": 4}, {"base_model_path": four_bits}):
        glmft.load(over_four, **options)
        assert warnings_of(caplog) == []
    glmft.load(over_floats)
    assert warnings_of(caplog) == []
    glmft.load(over_four)
    [line] = warnings_of(caplog)
    assert "was trained over a base in 4 bits and is put onto a full-precision base" in line
    assert line.endswith("--quantization_bit 4 gives the same")
    for folder, options, part in (
        (over_four, {"quantization_bit": 8}, "over a base in 4 bits and is put onto a base in 8 bits"),
        (over_floats, {"base_model_path": four_bits}, "over a full-precision base and is put onto a base in 4 bits"),
    ):
        glmft.load(folder, **options)
        [line] = warnings_of(caplog)
        assert part in line


def test_an_adapter_trained_on_a_quantised_folder_knows_its_base_in_floats_and_no_other(
    four_bits, model_folder, adapter, official_folders, caplog
):
    over_folder = adapter(base=four_bits)
    glmft.load(over_folder, base_model_path=model_folder)
    assert len(warnings_of(caplog)) == 1
    with pytest.raises(ConfigError, match="was trained on another base"):
        glmft.load(over_folder, base_model_path=official_folders["glm2"])


def test_merging_takes_the_base_in_floats_alone(four_bits, model_folder, adapter, tmp_path, caplog):
    over_folder = adapter(base=four_bits)
    with pytest.raises(ConfigError, match=r"is quantised \(4\), .* name the full-precision base with --ori_model_dir"):
        merge(MergeConfig(model_dir=str(over_folder)))
    assert not (over_folder / "merged").exists()
    out = merge(MergeConfig(ori_model_dir=str(model_folder), model_dir=str(over_folder)))
    assert len(warnings_of(caplog)) == 1
    merged, _ = glmft.load(out, dtype="fp32", device="cpu")
    tuned, _ = glmft.load(over_folder, base_model_path=model_folder, dtype="fp32", device="cpu")
    torch.testing.assert_close(merged(IDS).logits, tuned(input_ids=IDS).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("quantization_bit", ["4", "8"])
def test_tuners_of_the_bases_own_weights_are_refused_and_the_others_are_not(quantization_bit, model_folder):
    config = load_config(model_folder, quantization_bit=quantization_bit)
    refused = [Full(), Freeze("layers.1."), Lora(4, 8, 0, "mlp", use_dora=True)]
    refused += [Lora(4, 8, 0, "mlp", init_lora_weights="pissa")]
    for tuner in refused:
        assert base_problems(tuner, meta_model(config), zero_stage=2) == [tuner.needs_floats]
    for tuner in (Lora(4, 8, 0, "mlp", use_rslora=True), Prefix(4, True), Prompt(4, "lstm")):
        assert base_problems(tuner, meta_model(config), zero_stage=3) == []
    plain = load_config(model_folder)
    assert [base_problems(tuner, meta_model(plain), zero_stage=2) for tuner in refused] == [[]] * 4


def test_the_share_that_trains_is_of_all_numbers(model_folder):
    def summary(quantization_bit):
        model = load_model(load_config(model_folder, quantization_bit=quantization_bit), model_folder, torch.float32)
        return parameter_table(Lora(4, 8, 0, "mlp").apply(model)).splitlines()[-1]

    assert summary("4") == summary("8") == summary(None)
    if nf4.is_installed():
        assert summary("nf4") == summary(None)


# ------------------------------------------------------------------------------------------------- bitsandbytes


def test_without_bitsandbytes_nf4_is_refused_in_one_line(model_folder, monkeypatch):
    monkeypatch.setattr(nf4, "is_installed", lambda: False)
    with pytest.raises(
        ConfigError, match=r"--quantization_bit nf4: needs bitsandbytes, .* pip install 'glmft\[quant\]'"
    ):
        load_config(model_folder, quantization_bit="nf4")


def test_a_folder_quantised_by_another_library_is_refused(model_folder):
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="quantised by 'gptq'; of those only bitsandbytes is supported"):
        load_config(model_folder)


@pytest.mark.skipif(not nf4.is_installed(), reason="bitsandbytes, an optional extra, is not installed")
class TestBitsandbytes:
    def test_nf4_doubly_quantised_is_what_the_flag_gives(self, model_folder):
        model, _ = glmft.load(model_folder, quantization_bit="nf4", dtype="fp32", device="cpu")
        kinds = {name.rsplit(".", 1)[-1]: m for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
        assert kinds.keys() == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
        for module in kinds.values():
            assert module.weight.quant_state.quant_type == "nf4"
            assert module.weight.quant_state.nested
            assert module.compute_dtype == torch.float32
        assert model.config.quantisation == "nf4"

    def test_a_folder_with_its_own_quantization_config_loads_as_it_is(self, model_folder, tmp_path):
        first, tokenizer = glmft.load(model_folder, quantization_bit="nf4", dtype="fp32", device="cpu")
        first.save_pretrained(tmp_path / "stored")
        tokenizer.save_pretrained(tmp_path / "stored")
        stored, _ = glmft.load(tmp_path / "stored", dtype="fp32", device="cpu")
        assert stored.config.quantisation == "nf4"
        assert torch.equal(stored(IDS).logits, first(IDS).logits)
        with pytest.raises(ConfigError, match=r"is quantised already \(nf4\)"):
            load_config(tmp_path / "stored", quantization_bit="4")
        assert base_problems(Full(), meta_model(load_config(tmp_path / "stored")), zero_stage=2) == [
            Full().needs_floats
        ]

    def test_eight_bits_of_bitsandbytes_load_too(self, model_folder, tmp_path):
        from transformers import BitsAndBytesConfig

        from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration

        settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["output_layer"])
        model = ChatGLM2ForConditionalGeneration.from_pretrained(model_folder, quantization_config=settings)
        model.save_pretrained(tmp_path / "stored")
        config = load_config(tmp_path / "stored", "glm2")
        assert config.quantisation == "llm.int8"
        tuned = Lora(4, 8, 0.0, "all-linear").apply(load_model(config, tmp_path / "stored", torch.float32)).train()
        tuned(IDS, labels=IDS).loss.backward()
        assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)

    def test_an_adapter_records_nf4(self, adapter, caplog):
        folder = adapter("nf4")
        glmft.load(folder, quantization_bit="nf4")
        assert warnings_of(caplog) == []
        glmft.load(folder)
        assert "was trained over a base in nf4 and is put onto a full-precision base" in warnings_of(caplog)[0]

    def test_zero3_is_refused(self, model_folder):
        config = load_config(model_folder, quantization_bit="nf4")
        [problem] = base_problems(Lora(4, 8, 0.0, "mlp"), meta_model(config), zero_stage=3)
        assert problem.startswith("--ds_file: ZeRO-3 cannot partition the weights of bitsandbytes")
        assert base_problems(Lora(4, 8, 0.0, "mlp"), meta_model(config), zero_stage=2) == []
