"""Adapters over quantised bases: they train as over the same numbers in floats; what needs floats is refused."""

import pytest
import torch
from encoding import encoded
from peft import PeftModel
from peft.tuners.lora import Linear

from glmft.data.collate import collate
from glmft.data.encode import Lengths
from glmft.data.formats import single
from glmft.models import nf4
from glmft.models.checkpointing import checkpoint_layers
from glmft.models.loading import load_config, load_model, meta_model
from glmft.models.quantised import quantised_layers
from glmft.tokenizers.loading import load_tokenizer
from glmft.tuners.freeze import Freeze
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora
from glmft.tuners.lora_linear import OneStepLinear
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt

needs_bitsandbytes = pytest.mark.skipif(
    not nf4.is_installed(), reason="bitsandbytes, an optional extra, is not installed"
)
QUANTISATIONS = ["8", "4", pytest.param("nf4", marks=needs_bitsandbytes)]
TUNERS = {
    "ptuning": lambda: Prefix(4, False),
    "ptuning-projection": lambda: Prefix(4, True, 20),
    "prompt-mlp": lambda: Prompt(4, "mlp", 20),
    "lora": lambda: Lora(3, 6, 0.0, "all-linear"),
    "lora-rs-gaussian": lambda: Lora(3, 6, 0.0, "attention", use_rslora=True, init_lora_weights="gaussian"),
    "lora-embedding": lambda: Lora(3, 6, 0.0, "mlp", modules_to_save="word_embeddings"),
}


@pytest.fixture(params=["glm", "glm2", "native-glm4"])
def folder(request, all_folders):
    return all_folders[request.param]


@pytest.fixture
def rows(folder):
    tokenizer = load_tokenizer(folder)
    records = [single("云川岭溪泉", "峰湖岛林"), single("云川", "松柏")]
    batch = collate(encoded(records, tokenizer, Lengths(64, 32))[0], tokenizer)
    return {name: tensor for name, tensor in batch.items() if name != "loss_positions"}


def over(quantisation: str | None, folder, dtype=torch.float32):
    return load_model(load_config(folder, quantization_bit=quantisation), folder, dtype)


def dequantised(quantised, folder):
    """The same model with its weights in floats."""
    plain = over(None, folder)
    for name, module in quantised.named_modules():
        if hasattr(module, "dequantised"):
            plain.get_submodule(name).weight.data = module.dequantised()
        elif type(module).__name__ == "Linear4bit":
            from bitsandbytes.functional import dequantize_4bit

            plain.get_submodule(name).weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)
    return plain


def by_peft(model):
    """LoRA computed by peft's own code, also where ours takes one step for it, whose sums have another order."""
    for module in model.modules():
        if isinstance(module, OneStepLinear):
            module.__class__ = Linear
    return model


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_an_adapters_gradients_are_those_over_the_same_weights_in_floats(quantisation, name, folder, rows):
    quantised = over(quantisation, folder)
    gradients, state = [], None
    for base in (quantised, dequantised(quantised, folder)):
        torch.manual_seed(0)
        model = by_peft(TUNERS[name]().apply(base).train())
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if state is None:  # B of LoRA moved off zero, so that A has a gradient too
            state = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in trained.items()}
        assert trained.keys() == state.keys()
        with torch.no_grad():
            for n, parameter in trained.items():
                parameter.copy_(state[n])
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss = model(**rows).loss
        loss.backward()
        gradients.append({n: p.grad for n, p in trained.items()})
    for n, gradient in gradients[0].items():
        largest = gradients[1][n].abs().max()
        assert largest > 0, n
        torch.testing.assert_close(gradient / largest, gradients[1][n] / largest, rtol=0, atol=1e-6, msg=n)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_gradient_checkpointing_changes_no_gradient(quantisation, use_reentrant, folder, rows):
    gradients = []
    for every in (0, 1 if use_reentrant else 2):
        torch.manual_seed(0)
        model = TUNERS["lora"]().apply(over(quantisation, folder)).train()
        checkpoint_layers(model, every, use_reentrant)
        model(**rows).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient, atol=1e-6, rtol=1e-4, msg=n)


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_what_trains_is_float32_and_the_integers_stay_as_they_are(quantisation, folder, rows):
    model = TUNERS["lora"]().apply(over(quantisation, folder, torch.bfloat16)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    before = {n: t.clone() for n, t in model.state_dict().items() if t.dtype in (torch.int8, torch.uint8)}
    assert before
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        model(**rows).loss.backward()
    optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if n in before)


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_a_lora_folder_loads_in_plain_peft_on_the_quantised_base(quantisation, folder, rows, tmp_path):
    tuner = TUNERS["lora"]()
    model = tuner.apply(over(quantisation, folder)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1)
    tuner.save(model, tuner.state(model), tmp_path, {"base_model_name_or_path": str(folder)})
    plain = PeftModel.from_pretrained(over(quantisation, folder), tmp_path).eval()
    rows = {**rows, "labels": None}
    torch.testing.assert_close(plain(**rows).logits, model(**rows).logits, atol=0, rtol=0)


@needs_bitsandbytes
def test_answering_between_two_steps_changes_no_gradient_of_the_next(folder, rows):
    model = TUNERS["lora"]().apply(over("nf4", folder)).train()
    gradients = []
    for _ in range(2):
        model.train()(**rows).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.zero_grad()
        with torch.no_grad():
            model.eval()(**rows)
    for before, after in zip(*gradients, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_half_of_a_model_keeps_what_is_quantised(quantisation, folder, rows):
    """DeepSpeed calls `half` in fp16."""
    model = TUNERS["ptuning"]().apply(over(quantisation, folder, torch.float16)).half()
    expected = over(quantisation, folder, torch.float16).state_dict()
    assert {t.dtype for t in expected.values()} & {torch.int8, torch.uint8}
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items() if n in expected)
    model(**rows).loss.backward()


@pytest.mark.parametrize(
    ("tuner", "reason"),
    [
        (Full(), "--train_type full: trains the base's own weights"),
        (Freeze("layers.1."), "--train_type freeze: trains the base's own weights"),
        (Lora(3, 6, 0.0, "mlp", use_dora=True), "--use_dora: takes the norms of the base's weights"),
        (
            Lora(3, 6, 0.0, "mlp", init_lora_weights="pissa_niter_4"),
            "--init_lora_weights pissa_niter_4: takes the main",
        ),
    ],
)
def test_what_needs_floats_says_why(tuner, reason):
    assert tuner.needs_floats.startswith(reason)
    assert "--quantization_bit" in tuner.needs_floats


@pytest.mark.parametrize("name", TUNERS)
def test_what_reads_no_weights_needs_no_floats(name):
    assert TUNERS[name]().needs_floats == ""


@pytest.mark.parametrize("module", ["dense", "mlp", "layers.1"])
def test_whole_modules_of_integers_cannot_be_trained_beside_lora(module, official_folders):
    folder = official_folders["glm2"]
    model = meta_model(load_config(folder, quantization_bit="4"))
    assert len(list(quantised_layers(model))) == 12
    [problem] = Lora(3, 6, 0.0, "query_key_value", modules_to_save=module).problems(model)
    assert problem.startswith(f"--modules_to_save {module}: holds quantised weights")
    assert Lora(3, 6, 0.0, "query_key_value", modules_to_save=module).problems(meta_model(load_config(folder))) == []
