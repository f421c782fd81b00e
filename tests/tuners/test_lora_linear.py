"""A linear module under LoRA, computed in one step, gives what peft's own code gives."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from glmft.tuners.lora_linear import OneStepLinear, in_one_step


def wrapped(dtype=torch.float32, trained_in=None, bias: bool = True, **options) -> nn.Module:
    """One linear module, 7 to 5, under LoRA whose update is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5, bias=bias)).to(dtype)
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, target_modules=["0"], **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape).to(trained_in or dtype)
    in_one_step(model)
    module = model.base_model.model[0]
    assert type(module) is OneStepLinear
    return module


def gradients(module, forward, x) -> list:
    """Output, and gradients of the input and of what trains."""
    x = x.clone().requires_grad_()
    out = forward(module, x)
    learned = [x, *(p for p in module.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), learned)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_bias": True}, {"use_dora": True}], ids=str)
def test_output_and_gradients_are_those_of_peft(options, bias):
    if options.get("lora_bias") and not bias:
        return
    module, x = wrapped(bias=bias, **options), torch.randn(2, 4, 7)
    for ours, theirs in zip(
        gradients(module, OneStepLinear.forward, x), gradients(module, Linear.forward, x), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_rows_have_gradients_of_zero():
    """As on a rank that has no record left."""
    module = wrapped(lora_dropout=0.1).train()
    out, of_x, *learned = gradients(module, OneStepLinear.forward, torch.randn(1, 0, 7))
    assert out.shape == (1, 0, 5)
    assert of_x.shape == (1, 0, 7)
    assert len(learned) == 2
    assert not any(gradient.any() for gradient in learned)


def test_with_dropout_the_gradients_are_those_of_what_is_computed():
    module, x = wrapped(torch.float64, lora_dropout=0.4).train(), torch.randn(3, 7, dtype=torch.float64)

    def forward(x, down, up):
        torch.manual_seed(1)
        return torch.func.functional_call(module, {"lora_A.default.weight": down, "lora_B.default.weight": up}, x)

    given = (x, module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach())
    assert torch.autograd.gradcheck(forward, [t.requires_grad_() for t in given])


def test_dropout_leaves_out_its_share_and_scales_up_the_rest():
    module, x = wrapped(lora_dropout=0.25).train(), torch.ones(20_000, 7)
    base, low = module.base_layer(x[:1]), module.lora_A["default"].weight
    with torch.no_grad():
        low.zero_()[:, 0] = 1.0  # only the first number of a row counts
        full = module.eval()(x[:1]) - base
        parts = (module.train()(x) - base) / full
    dropped = parts.abs() < 1e-4
    assert dropped[:, 0].float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(parts[~dropped], torch.full_like(parts[~dropped], 1 / 0.75), rtol=1e-3, atol=1e-3)


def test_under_autocast_it_is_as_near_to_the_exact_gradient_as_peft():
    module, x = wrapped(torch.bfloat16, torch.float32), torch.randn(64, 7).bfloat16()
    exact = gradients(copy.deepcopy(module).double(), Linear.forward, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (gradients(module, forward, x) for forward in (OneStepLinear.forward, Linear.forward))
    for got, other, want in zip(ours, theirs, exact, strict=True):
        assert got.dtype == other.dtype
        assert (got - want).abs().max() <= 1.5 * (other - want).abs().max() + 1e-6


def test_adapters_that_are_off_merged_or_more_than_one_run_as_peft_has_them():
    module, x = wrapped(), torch.randn(4, 7)
    on, base = module(x), module.base_layer(x)
    module.enable_adapters(False)
    torch.testing.assert_close(module(x), base)
    module.enable_adapters(True)
    module.merge()
    torch.testing.assert_close(module(x), on)
    module.unmerge()
    module.update_layer("other", 2, 4, config=LoraConfig(r=2, init_lora_weights=False))
    module.set_adapter(["default", "other"])
    torch.testing.assert_close(module(x), Linear.forward(module, x))


def test_what_is_kept_for_the_backward_pass_is_the_input_its_dropout_and_r_numbers_a_token():
    module, x = wrapped(lora_dropout=0.5).train(), torch.randn(100, 7, requires_grad=True)
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    numbers = sum(size for place, size in kept.items() if place not in own)
    assert numbers == 100 * (7 * 4 + 7 * 1 + 3 * 4)
