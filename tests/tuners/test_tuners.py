"""One matrix: every tuner keeps the same promises."""

import dataclasses
import json
import shutil

import pytest
import torch
from adapters import disturb
from encoding import encoded
from peft import PeftModel
from safetensors.torch import load_file

import glmft
from glmft.data.collate import collate
from glmft.data.encode import Lengths
from glmft.data.formats import single
from glmft.errors import CheckpointError, ConfigError
from glmft.family import FAMILIES, is_native
from glmft.models.checkpointing import checkpoint_layers
from glmft.models.loading import load_config, load_model, meta_model
from glmft.settings.config import TrainConfig
from glmft.tokenizers.loading import load_tokenizer
from glmft.training.optim import make_optimizer, set_learning_rate
from glmft.tuners import tuner_class
from glmft.tuners.freeze import Freeze, matching
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix, put_prefix, read_prefix
from glmft.tuners.prompt import Prompt

NORM = "final_layernorm"
CASES = {
    "full": (Full(), lambda name: True),
    "freeze": (Freeze(f"layers.1.,{NORM}"), lambda name: ".layers.1." in name or NORM in name),
    "freeze-last": (Freeze("", 2, "mlp"), lambda name: "layers.1.mlp." in name or "layers.2.mlp." in name),
    "ptuning": (Prefix(4, False), lambda name: "prefix_encoder." in name),
    "ptuning-projection": (Prefix(4, True, 20), lambda name: "prefix_encoder." in name),
    "prompt": (Prompt(4, "none"), lambda name: "prompt_encoder." in name),
    "prompt-lstm": (Prompt(4, "lstm", 20), lambda name: "prompt_encoder." in name),
    "lora": (Lora(3, 6, 0.0, "all-linear"), lambda name: "lora_" in name),
    "lora-rs": (Lora(3, 6, 0.0, "attention", use_rslora=True), lambda name: "lora_" in name),
    "lora-dora": (Lora(3, 6, 0.0, "mlp", use_dora=True), lambda name: "lora_" in name),
    "lora-pissa": (Lora(3, 6, 0.0, "all-linear", init_lora_weights="pissa"), lambda name: "lora_" in name),
    "lora-whole": (
        Lora(3, 6, 0.0, "query_key_value", modules_to_save=NORM),
        lambda name: "lora_" in name or (NORM in name and "original_module" not in name),
    ),
}
ADAPTERS = [name for name in CASES if name != "full"]


def tuner_of(name, folder):
    """A case's tuner, by the names of the folder's layout."""
    tuner = CASES[name][0]
    if not is_native(folder):
        return tuner
    named = {f.name: str(getattr(tuner, f.name)).replace(NORM, "model.norm") for f in dataclasses.fields(tuner)}
    return dataclasses.replace(tuner, **{field: text for field, text in named.items() if "model.norm" in text})


@pytest.fixture(params=CASES)
def case(request, model_folder):
    """A tuner, and which parameters it trains."""
    owned = CASES[request.param][1]
    return tuner_of(request.param, model_folder), lambda name: owned(name.replace("model.norm.", f"{NORM}."))


@pytest.fixture(params=[*FAMILIES, "native-glm", "native-glm4"])
def model_folder(request, all_folders):
    return all_folders[request.param]


@pytest.fixture
def rows(model_folder):
    """A micro-batch of two rows as training makes them: input_ids and labels, and what the family needs beside."""
    tokenizer = load_tokenizer(model_folder)
    records = [single("云川岭溪泉", "峰湖岛林"), single("云川", "松柏")]
    batch = collate(encoded(records, tokenizer, Lengths(64, 32))[0], tokenizer)
    return {name: tensor for name, tensor in batch.items() if name != "loss_positions"}


def logits(model, rows):
    with torch.no_grad():
        return model(**{**rows, "labels": None}).logits


def base(folder, dtype=torch.float32):
    return load_model(load_config(folder), folder, dtype)


def described(folder):
    from glmft.models.loading import fingerprint

    return {
        "family": load_config(folder).family,
        "base_model_name_or_path": str(folder),
        "base_fingerprint": fingerprint(folder),
    }


def test_exactly_the_tuners_own_parameters_train_in_float32(case, model_folder):
    tuner, owned = case
    model = tuner.apply(base(model_folder, torch.bfloat16))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if owned(name)}
    assert trained
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} <= {torch.bfloat16}


def test_gradients_exist_only_where_owned(case, model_folder, rows):
    tuner, owned = case
    model = tuner.apply(base(model_folder)).train()
    model(**rows).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, _ in model.named_parameters() if owned(name)
    }


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("full", "freeze", "lora"))])
def test_before_the_first_step_the_model_is_the_base(name, model_folder, rows):
    """A prefix has no such promise: its virtual tokens take attention from the first step on."""
    model = tuner_of(name, model_folder).apply(base(model_folder)).eval()
    torch.testing.assert_close(logits(model, rows), logits(base(model_folder).eval(), rows))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_adapter_needs_nothing_but_its_folder(name, model_folder, tmp_path, rows):
    tuner, folder = tuner_of(name, model_folder), tmp_path / "adapter"
    folder.mkdir()
    model = tuner.apply(base(model_folder)).eval()
    disturb(model, scale=0.1)
    tuner.save(model, tuner.state(model), folder, described(model_folder))
    loaded, _ = glmft.load(folder, dtype="fp32", device="cpu")
    exact = {} if "pissa" in name else {"atol": 0, "rtol": 0}  # PiSSA is saved as another sum of the same matrices
    torch.testing.assert_close(logits(loaded, rows), logits(model, rows), **exact)
    recorded = json.loads((folder / "glmft_adapter.json").read_text(encoding="utf-8"))
    assert tuner_class(recorded["train_type"]).from_description(folder) == tuner


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_do_not_depend_on_the_batch(case, num_beams, model_folder):
    """Whatever tuner: among longer prompts, padded on the left, an answer is the one it is alone."""
    model, tokenizer = case[0].apply(base(model_folder)).eval(), load_tokenizer(model_folder)
    disturb(model, scale=0.1)
    queries = ["云川岭溪泉峰湖岛林松柏梅", "云", "兰竹菊荷", "岭溪泉峰湖岛"]
    options = {"max_new_tokens": 6, "num_beams": num_beams}
    alone = [glmft.answer(model, tokenizer, [query], **options)[0] for query in queries]
    assert glmft.answer(model, tokenizer, queries, **options) == alone


def test_a_full_checkpoint_is_a_model_folder(model_folder, tmp_path, rows):
    model = Full().apply(base(model_folder)).eval()
    disturb(model, scale=0.1)
    Full().save(model, Full().state(model), tmp_path / "out", {})
    torch.testing.assert_close(logits(base(tmp_path / "out").eval(), rows), logits(model, rows), atol=0, rtol=0)
    [file] = model_folder.glob("*.index.json")
    index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == index.keys()


def test_an_empty_or_torn_adapter_is_refused(model_folder, tmp_path):
    tuner = CASES["ptuning"][0]
    model = tuner.apply(base(model_folder))
    empty = {name: torch.empty(0) for name in tuner.state(model)}
    with pytest.raises(CheckpointError, match="refused to write an empty adapter"):
        tuner.save(model, empty, tmp_path, described(model_folder))
    tuner.save(model, tuner.state(model), tmp_path, described(model_folder))
    file = tmp_path / "glmft_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="torn or no weight file"):
        glmft.load(tmp_path)


def test_an_adapter_of_another_base_is_refused(model_folder, tmp_path):
    tuner = CASES["ptuning"][0]
    model = tuner.apply(base(model_folder))
    folder = tmp_path / "adapter"
    folder.mkdir()
    tuner.save(model, tuner.state(model), folder, described(model_folder))
    other = shutil.copytree(model_folder, tmp_path / "other")
    changed = Full().apply(base(model_folder))
    disturb(changed, scale=0.1)
    for file in (*other.glob("*.bin"), *other.glob("*.safetensors"), *other.glob("*.index.json")):
        file.unlink()
    changed.save_pretrained(other)
    with pytest.raises(ConfigError, match="trained on another base"):
        glmft.load(folder, base_model_path=other)
    with pytest.raises(ConfigError, match=r"its base model is not at .*nowhere"):
        glmft.load(folder, base_model_path=tmp_path / "nowhere")


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_is_initialised_whatever_lay_in_its_memory(projection, model_folder, monkeypatch):
    """`from_pretrained` leaves new parameters uninitialised; here the memory is full of NaN."""
    model = base(model_folder)
    add = type(model.base_model).add_prefix_encoder

    def dirty(self):
        add(self)
        for parameter in self.prefix_encoder.parameters():
            parameter.data.fill_(float("nan"))

    monkeypatch.setattr(type(model.base_model), "add_prefix_encoder", dirty)
    model = Prefix(4, projection).apply(model)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.base_model.prefix_encoder.embedding.weight.std() > 0


def test_lora_is_w_plus_scaled_b_a(model_folder, rows):
    tuner = Lora(3, 6, 0.0, "query_key_value")
    model = tuner.apply(base(model_folder)).eval()
    disturb(model, scale=0.1)
    state = tuner.state(model)
    plain = base(model_folder).eval()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            lora = f"base_model.model.{name.removesuffix('weight')}lora_"
            if f"{lora}A.weight" in state:
                parameter += 6 / 3 * state[f"{lora}B.weight"] @ state[f"{lora}A.weight"]
    torch.testing.assert_close(logits(plain, rows), logits(model, rows), atol=1e-4, rtol=1e-4)


def test_a_lora_folder_loads_in_plain_peft_and_peft_folders_load_here(model_folder, tmp_path, rows):
    tuner = CASES["lora"][0]
    model = tuner.apply(base(model_folder)).eval()
    disturb(model, scale=0.1)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    tuner.save(model, tuner.state(model), ours, described(model_folder))
    expected = logits(model, rows)
    plain = PeftModel.from_pretrained(base(model_folder), ours).eval()
    torch.testing.assert_close(logits(plain, rows), expected, atol=0, rtol=0)
    model.save_pretrained(theirs)
    loaded, _ = glmft.load(theirs, base_model_path=model_folder, dtype="fp32", device="cpu")
    torch.testing.assert_close(logits(loaded, rows), expected, atol=0, rtol=0)


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
        (Lora(3, 6, 0.0, "dense,qkv"), "--lora_module_name qkv: matches no linear module"),
        (Lora(3, 6, 0.0, "layernorm"), "--lora_module_name layernorm: matches no linear module"),
        (
            Lora(3, 6, 0.0, "dense", modules_to_save="final_layernorm,norm"),
            "--modules_to_save norm: matches no module; there are 0, 1, 2, dense, dense_4h_to_h, ",
        ),
        (Freeze("layers.27."), "--freeze_module_name layers.27.: matches no parameter; there are transformer."),
    ],
)
def test_names_that_hit_nothing_are_answered_with_what_there_is(tuner, line, tiny_config):
    [problem] = tuner.problems(meta_model(tiny_config()))
    assert problem.startswith(line)


# ---------------------------------------------------------------------------------------------------- LoRA's options


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("lora")])
def test_every_kind_of_lora_loads_in_plain_peft_on_the_untouched_base(name, model_folder, tmp_path, rows):
    tuner = tuner_of(name, model_folder)
    model = tuner.apply(base(model_folder)).eval()
    disturb(model, scale=0.1)
    tuner.save(model, tuner.state(model), tmp_path, described(model_folder))
    recorded = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert recorded["base_model_name_or_path"] == str(model_folder)
    plain = PeftModel.from_pretrained(base(model_folder), tmp_path).eval()
    torch.testing.assert_close(logits(plain, rows), logits(model, rows))


def test_a_module_that_is_saved_whole_is_trained_and_comes_back(model_folder, tmp_path, rows):
    """The final norm: neither a linear module nor one that LoRA would touch."""
    tuner = tuner_of("lora-whole", model_folder)
    at = f".{tuner.modules_to_save}."
    model = tuner.apply(base(model_folder)).eval()
    whole = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert whole
    assert all(f"{at}modules_to_save." in name for name in whole)
    model(**rows).loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in whole:
                assert parameter.grad.abs().max() > 0
                parameter.add_(1.0)
    tuner.save(model, tuner.state(model), tmp_path, described(model_folder))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    norm = {name.rsplit(".", 1)[1]: tensor for name, tensor in stored.items() if at in name}
    plain = {n.rsplit(".", 1)[1]: p for n, p in base(model_folder).named_parameters() if at in f".{n}"}
    assert norm.keys() == plain.keys()
    for kind, tensor in norm.items():
        torch.testing.assert_close(tensor, plain[kind] + 1.0)
    loaded, _ = glmft.load(tmp_path, dtype="fp32", device="cpu")
    torch.testing.assert_close(logits(loaded, rows), logits(model, rows), atol=0, rtol=0)
    assert not torch.allclose(logits(loaded, rows), logits(base(model_folder).eval(), rows))


def test_lora_plus_gives_b_its_own_learning_rate(tiny_model):
    tuner = Lora(3, 6, 0.0, "attention", loraplus_lr_ratio=16)
    model = tuner.apply(tiny_model())
    config = TrainConfig(learning_rate=1e-3)
    optimizer = make_optimizer(model, config, tuner.learning_rate_ratio)
    set_learning_rate(optimizer, 1e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rate == pytest.approx(16e-3 if "lora_B" in name else 1e-3) for name, rate in rates.items())
    assert len(rates) == 12


def test_presets_name_the_linear_modules_of_attention_and_mlp(tiny_config):
    model = meta_model(tiny_config())
    assert Lora(1, 1, 0, "attention").target_modules(model) == ["query_key_value", "dense"]
    assert Lora(1, 1, 0, "mlp").target_modules(model) == ["dense_h_to_4h", "dense_4h_to_h"]
    assert Lora(1, 1, 0, "dense,all-linear").target_modules(model) == [
        "dense",
        "query_key_value",
        "dense_h_to_4h",
        "dense_4h_to_h",
    ]


def test_presets_and_names_of_the_official_layouts_hold_in_transformers_own(native_folders):
    for folder in native_folders.values():
        model = meta_model(load_config(folder))
        assert Lora(1, 1, 0, "attention").target_modules(model) == ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert Lora(1, 1, 0, "mlp").target_modules(model) == ["gate_up_proj", "down_proj"]
        assert Lora(1, 1, 0, "query_key_value,dense_4h_to_h").target_modules(model)[2:] == ["v_proj", "down_proj"]
        assert Lora(1, 1, 0, "o_proj,k_proj").problems(model) == []
        [problem] = Lora(1, 1, 0, "qkv").problems(model)
        assert "valid names are down_proj, gate_up_proj, k_proj, o_proj, q_proj, v_proj, attention" in problem


# ---------------------------------------------------------------------------------------------------- freezing


def test_freeze_gradients_are_those_of_full_training(model_folder, rows):
    full, frozen = Full().apply(base(model_folder)), tuner_of("freeze", model_folder).apply(base(model_folder))
    for model in (full, frozen):
        model(**rows).loss.backward()
    wanted = {name: p.grad for name, p in full.named_parameters()}
    compared = {name: p.grad for name, p in frozen.named_parameters() if p.grad is not None}
    assert compared
    for name, gradient in compared.items():  # a head that is frozen adds up in another order than one that trains
        assert (gradient - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max(), name


def test_more_last_layers_than_there_are(tiny_config):
    [problem] = Freeze("", 9).problems(meta_model(tiny_config()))
    assert problem == "--freeze_last_n 9: the model has 3 layers"
    assert Freeze("", 3).problems(meta_model(tiny_config())) == []


# ---------------------------------------------------------------------------------------------------- prefixes


@pytest.mark.parametrize("name", ["ptuning", "ptuning-projection"])
def test_official_p_tuning_checkpoints_are_written_and_read(name, model_folder, tmp_path, rows):
    """`pytorch_model.bin` with `transformer.prefix_encoder.*` and nothing else, as folder or file."""
    tuner = tuner_of(name, model_folder)
    model = tuner.apply(base(model_folder)).eval()
    disturb(model, scale=0.1)
    tuner.save(model, tuner.state(model), tmp_path, described(model_folder))
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert state.keys() == {n for n, _ in model.named_parameters() if "prefix_encoder." in n}
    official = tmp_path / "official"
    official.mkdir()
    (tmp_path / "pytorch_model.bin").rename(official / "pytorch_model.bin")
    for place in (official, official / "pytorch_model.bin"):
        loaded, _ = glmft.load(model_folder, prefix=place, dtype="fp32", device="cpu")
        torch.testing.assert_close(logits(loaded, rows), logits(model, rows), atol=0, rtol=0)
    go_on = Prefix(16, True, ptuning_checkpoint=str(official)).apply(base(model_folder)).eval()
    torch.testing.assert_close(logits(go_on, rows), logits(model, rows), atol=0, rtol=0)


def test_a_prefix_that_cannot_be_used_is_one_line(model_folder, tiny_model, tmp_path):
    with pytest.raises(CheckpointError, match="no prefix here"):
        read_prefix(tmp_path)
    torch.save({"other": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds no transformer\.prefix_encoder\.embedding\.weight"):
        read_prefix(tmp_path)
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(CheckpointError, match="something other than named tensors"):
        read_prefix(tmp_path / "list.bin")
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.ones(4, 192), "epoch": 3}, tmp_path / "mixed.bin")
    with pytest.raises(CheckpointError, match="something other than named tensors"):
        read_prefix(tmp_path / "mixed.bin")
    (tmp_path / "torn.bin").write_bytes(b"PK torn")
    with pytest.raises(CheckpointError, match="is torn or no weight file"):
        read_prefix(tmp_path / "torn.bin")
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.ones(4, 5 * 64)}, tmp_path / "five.bin")
    with pytest.raises(CheckpointError, match="a prefix of 5 layers, the model has 3"):
        put_prefix(tiny_model(), tmp_path / "five.bin")
    [problem] = Prefix(4, True, ptuning_checkpoint=str(tmp_path / "five.bin")).problems(tiny_model())
    assert "a prefix of 5 layers, the model has 3" in problem


# ---------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(case, use_reentrant, model_folder, rows):
    if is_native(model_folder) and use_reentrant and isinstance(case[0], Prefix | Prompt):
        pytest.skip("refused: transformers' layers take the virtual tokens as a keyword argument")
    gradients = []
    for every in (0, 1 if use_reentrant else 2):
        torch.manual_seed(0)
        model = case[0].apply(base(model_folder)).train()
        checkpoint_layers(model, every, use_reentrant)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss = model(**rows).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)
