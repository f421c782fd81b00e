"""One matrix: every tuner keeps the same promises."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import glmft
from glmft.errors import CheckpointError, ConfigError
from glmft.models.loading import load_config, load_model, meta_model
from glmft.tuners import TUNERS
from glmft.tuners.freeze import Freeze, matching
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix

ALL_LINEAR = "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"
CASES = {
    "full": (Full(), lambda name: True),
    "freeze": (Freeze("layers.1.,final_layernorm"), lambda name: ".layers.1." in name or "final_layernorm" in name),
    "ptuning": (Prefix(4, False), lambda name: "prefix_encoder." in name),
    "ptuning-projection": (Prefix(4, True), lambda name: "prefix_encoder." in name),
    "lora": (Lora(3, 6, 0.0, ALL_LINEAR), lambda name: "lora_" in name),
}
ADAPTERS = [name for name in CASES if name != "full"]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def base(folder, dtype=torch.float32):
    return load_model(load_config(folder), folder, dtype)


def described(folder):
    from glmft.models.loading import fingerprint

    return {"family": "glm2", "base_model_name_or_path": str(folder), "base_fingerprint": fingerprint(folder)}


def ids() -> torch.Tensor:
    return torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(3))


def disturb(model):
    """Stand-in for training: move everything that trains."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_exactly_the_tuners_own_parameters_train_in_float32(case, model_folder):
    tuner, owned = case
    model = tuner.apply(base(model_folder, torch.bfloat16))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if owned(name)}
    assert trained
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} <= {torch.bfloat16}


def test_gradients_exist_only_where_owned(case, model_folder):
    tuner, owned = case
    model = tuner.apply(base(model_folder)).train()
    model(input_ids=ids(), labels=ids()).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, _ in model.named_parameters() if owned(name)
    }


@pytest.mark.parametrize("name", ["full", "freeze", "lora"])
def test_before_the_first_step_the_model_is_the_base(name, model_folder):
    """A prefix has no such promise: its virtual tokens take attention from the first step on."""
    model = CASES[name][0].apply(base(model_folder)).eval()
    torch.testing.assert_close(model(input_ids=ids()).logits, base(model_folder).eval()(ids()).logits)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_adapter_needs_nothing_but_its_folder(name, model_folder, tmp_path):
    tuner, folder = CASES[name][0], tmp_path / "adapter"
    folder.mkdir()
    model = tuner.apply(base(model_folder)).eval()
    disturb(model)
    tuner.save(model, tuner.state(model), folder, described(model_folder))
    loaded, _ = glmft.load(folder, dtype="fp32", device="cpu")
    torch.testing.assert_close(loaded(input_ids=ids()).logits, model(input_ids=ids()).logits, atol=0, rtol=0)
    recorded = json.loads((folder / "glmft_adapter.json").read_text(encoding="utf-8"))
    assert TUNERS[recorded["train_type"]].from_description(folder) == tuner
    rows = list(folder.glob("*.safetensors"))
    assert sum(f.stat().st_size for f in rows) < (model_folder / "model.safetensors").stat().st_size


def test_a_full_checkpoint_is_a_model_folder(model_folder, tmp_path):
    model = Full().apply(base(model_folder)).eval()
    disturb(model)
    Full().save(model, Full().state(model), tmp_path / "out", {})
    torch.testing.assert_close(base(tmp_path / "out").eval()(ids()).logits, model(ids()).logits, atol=0, rtol=0)
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(model_folder / "model.safetensors").keys()
    )


def test_an_empty_or_torn_adapter_is_refused(model_folder, tmp_path):
    tuner = CASES["ptuning"][0]
    model = tuner.apply(base(model_folder))
    empty = {name: torch.empty(0) for name in tuner.state(model)}
    with pytest.raises(CheckpointError, match="refused to write an empty adapter"):
        tuner.save(model, empty, tmp_path, described(model_folder))
    tuner.save(model, tuner.state(model), tmp_path, described(model_folder))
    file = tmp_path / "glmft_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        glmft.load(tmp_path)


def test_an_adapter_of_another_base_is_refused(model_folder, tiny_model, tokenizer, tmp_path):
    tuner = CASES["ptuning"][0]
    model = tuner.apply(base(model_folder))
    folder = tmp_path / "adapter"
    folder.mkdir()
    tuner.save(model, tuner.state(model), folder, described(model_folder))
    other = tmp_path / "other"
    tiny_model(padded_vocab_size=model.config.padded_vocab_size, num_layers=2).save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(ConfigError, match="trained on another base"):
        glmft.load(folder, base_model_path=other)
    with pytest.raises(ConfigError, match=r"its base model is not at .*nowhere"):
        glmft.load(folder, base_model_path=tmp_path / "nowhere")


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_is_initialised_whatever_lay_in_its_memory(projection, model_folder, monkeypatch):
    """`from_pretrained` leaves new parameters uninitialised; here the memory is full of NaN."""
    model = base(model_folder)
    add = type(model.transformer).add_prefix_encoder

    def dirty(self):
        add(self)
        for parameter in self.prefix_encoder.parameters():
            parameter.data.fill_(float("nan"))

    monkeypatch.setattr(type(model.transformer), "add_prefix_encoder", dirty)
    model = Prefix(4, projection).apply(model)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.transformer.prefix_encoder.embedding.weight.std() > 0


def test_lora_is_w_plus_scaled_b_a(model_folder):
    tuner = Lora(3, 6, 0.0, "query_key_value")
    model = tuner.apply(base(model_folder)).eval()
    disturb(model)
    state = tuner.state(model)
    plain = base(model_folder).eval()
    with torch.no_grad():
        for i, layer in enumerate(plain.transformer.encoder.layers):
            name = f"base_model.model.transformer.encoder.layers.{i}.self_attention.query_key_value.lora_"
            layer.self_attention.query_key_value.weight += 6 / 3 * state[f"{name}B.weight"] @ state[f"{name}A.weight"]
    torch.testing.assert_close(plain(ids()).logits, model(input_ids=ids()).logits, atol=1e-5, rtol=1e-4)


def test_a_lora_folder_loads_in_plain_peft_and_peft_folders_load_here(model_folder, tmp_path):
    tuner = CASES["lora"][0]
    model = tuner.apply(base(model_folder)).eval()
    disturb(model)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    tuner.save(model, tuner.state(model), ours, described(model_folder))
    expected = model(input_ids=ids()).logits
    plain = PeftModel.from_pretrained(base(model_folder), ours).eval()
    torch.testing.assert_close(plain(input_ids=ids()).logits, expected, atol=0, rtol=0)
    model.save_pretrained(theirs)
    loaded, _ = glmft.load(theirs, base_model_path=model_folder, dtype="fp32", device="cpu")
    torch.testing.assert_close(loaded(input_ids=ids()).logits, expected, atol=0, rtol=0)


def test_names_match_by_dotted_parts_before_substrings():
    names = [f"encoder.layers.{i}.mlp.weight" for i in (1, 2, 11)]
    assert matching(names, "layers.1") == matching(names, "layers.1.") == names[:1]
    assert matching(names, "layers.") == names
    assert matching(names, "yers.2") == names[1:2]
    assert matching(names, "layers.3") == []


@pytest.mark.parametrize(
    ("tuner", "line"),
    [
        (Lora(3, 6, 0.0, "qkv"), "--lora_module_name qkv: matches no linear module; valid names are dense, "),
        (Lora(3, 6, 0.0, ""), "--lora_module_name (empty): matches no linear module"),
        (Freeze("layers.27."), "--freeze_module_name layers.27.: matches no parameter; there are transformer."),
    ],
)
def test_names_that_hit_nothing_are_answered_with_what_there_is(tuner, line, tiny_config):
    [problem] = tuner.problems(meta_model(tiny_config()))
    assert problem.startswith(line)
