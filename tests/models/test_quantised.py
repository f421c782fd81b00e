"""Linear layers over integers: bytes computed by hand, the official formula, and the same gradients as over floats."""

import copy

import pytest
import torch
from torch import nn

from glmft.errors import ConfigError
from glmft.models.quantised import (
    QuantisedLinear,
    dequantise,
    quantise,
    quantised_layers,
    replace_linear_layers,
    unpacked,
)

BY_HAND = {
    # scales 1, 0, 2; integers 7 -7 4 -1, none, -7 1 0 -2 (halves go to the even one); two of them in a byte
    4: (
        [[7.0, -7.0, 3.5, -1.0], [0.0, 0.0, 0.0, 0.0], [-14.0, 2.0, 1.0, -3.0]],
        [[0x79, 0x4F], [0x00, 0x00], [0x91, 0x0E]],
    ),
    # scales 1, 0, 2; integers 127 -127 0 -64, none, -127 2 0 -50
    8: (
        [[127.0, -127.0, 0.5, -64.0], [0.0, 0.0, 0.0, 0.0], [-254.0, 3.0, 1.0, -100.0]],
        [[0x7F, 0x81, 0x00, 0xC0], [0x00, 0x00, 0x00, 0x00], [0x81, 0x02, 0x00, 0xCE]],
    ),
}
FORMATS = [torch.float32, torch.float16, torch.bfloat16]


def layer(bits: int, rows: int = 7, columns: int = 10, bias: bool = True) -> QuantisedLinear:
    """With random values, a row of zeros among them."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator)
    weight[2] = 0
    made = QuantisedLinear(columns, rows, bits, bias)
    made.take(*quantise(weight, bits))
    if bias:
        nn.init.normal_(made.bias, generator=generator)
    return made


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_and_scales_are_those_computed_by_hand(bits, dtype):
    weight, expected = BY_HAND[bits]
    integers, scale = quantise(torch.tensor(weight, dtype=dtype), bits)
    assert integers.dtype == torch.int8
    assert integers.view(torch.uint8).tolist() == expected
    assert scale.dtype == dtype
    assert scale.tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantised_weights_are_integer_times_scale_in_the_format_of_the_computation(bits, dtype):
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    integers, scale = quantise(weight, bits)
    whole = unpacked(integers) if bits == 4 else integers
    assert torch.equal(dequantise(integers, scale, bits, dtype), whole.to(dtype) * scale[:, None])
    assert torch.equal(dequantise(integers, scale, bits, torch.float32), whole.float() * scale.float()[:, None])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_of_float16_becomes_what_the_official_formula_makes_of_it(bits):
    weight = torch.randn(33, 64, generator=torch.Generator().manual_seed(1)).half()
    integers, scale = quantise(weight, bits)
    official_scale = weight.abs().max(dim=-1).values / ((2 ** (bits - 1)) - 1)
    official = torch.round(weight / official_scale[:, None]).to(torch.int8)
    assert torch.equal(scale, official_scale)
    assert torch.equal(unpacked(integers) if bits == 4 else integers, official)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_no_integer_leaves_its_range_and_no_weight_moves_by_more_than_half_a_step(bits, dtype):
    weight = torch.randn(2100, 8, generator=torch.Generator().manual_seed(2)).to(dtype)  # more rows than go at a time
    integers, scale = quantise(weight, bits)
    whole = unpacked(integers) if bits == 4 else integers
    assert whole.abs().max() == 2 ** (bits - 1) - 1
    moved = (dequantise(integers, scale, bits, torch.float32) - weight.float()).abs() / scale.float()[:, None]
    assert moved.max() <= (0.5001 if dtype != torch.float16 else 0.57)  # a quotient of float16 is rounded itself


@pytest.mark.parametrize("bits", [4, 8])
def test_values_too_small_for_a_scale_become_zeros(bits):
    integers, scale = quantise(torch.full((1, 2), 2.0**-24, dtype=torch.float16), bits)
    assert scale.tolist() == [0.0]
    assert not integers.any()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantising_what_was_dequantised_gives_the_same_bytes(bits):
    first = layer(bits)
    again = quantise(first.dequantised(), bits)
    assert torch.equal(again[0], first.weight)
    torch.testing.assert_close(again[1], first.weight_scale)


def test_every_byte_is_two_integers_and_back():
    every = torch.arange(256, dtype=torch.uint8).view(torch.int8)[None]
    first, second = unpacked(every)[0].view(-1, 2).unbind(-1)
    assert first.min() == second.min() == -8
    assert first.max() == second.max() == 7
    assert torch.equal(first * 16 + second % 16, every[0])


def test_an_odd_number_of_columns_cannot_be_packed():
    with pytest.raises(ConfigError, match="packs two columns in a byte, and a layer has 5"):
        QuantisedLinear(5, 3, 4)
    assert QuantisedLinear(5, 3, 8).weight.shape == (3, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_output_and_gradients_are_those_of_the_dequantised_layer(bits, bias, dtype):
    over_integers = layer(bits, bias=bias)
    x = torch.randn(2, 3, 10, dtype=dtype, generator=torch.Generator().manual_seed(4)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    out = over_integers(x)
    over_floats = nn.Linear(10, 7, bias, dtype=dtype)
    over_floats.weight.data = over_integers.dequantised(dtype)
    if bias:
        over_floats.bias.data = over_integers.bias.data.to(dtype)
    expected = over_floats(y)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(out, expected)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-6 if dtype == torch.float32 else 0)
    if bias:
        torch.testing.assert_close(over_integers.bias.grad, over_floats.bias.grad.float(), rtol=1e-2, atol=1e-6)


def test_nothing_of_the_weights_size_in_floats_waits_for_the_backward_pass():
    waiting = []
    x = torch.randn(2, 10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: waiting.append(t) or t, lambda t: t):
        layer(4)(x).sum()
    assert {(t.dtype, t.numel()) for t in waiting if t.numel() >= 7} == {(torch.int8, 35), (torch.float32, 7)}


def test_integers_and_scales_are_buffers_that_no_format_changes():
    made = layer(8)
    made.weight_scale = made.weight_scale.double()  # of a format that nothing else here has
    assert [name for name, _ in made.named_parameters()] == ["bias"]
    assert made.state_dict().keys() == {"bias", "weight", "weight_scale"}
    before = made.weight.clone(), made.weight_scale.clone()
    for moved in (made.half(), made.bfloat16(), made.to(torch.float32), copy.deepcopy(made)):
        assert moved.weight.dtype == torch.int8
        assert moved.weight_scale.dtype == torch.float64
        assert torch.equal(moved.weight, before[0])
        assert torch.equal(moved.weight_scale, before[1])
    assert made.to("meta").weight_scale.is_meta


def test_autocast_decides_on_the_format_as_for_any_linear_layer():
    x = torch.randn(2, 10, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(4)(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow, id="inductor-needs-a-compiler")]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_it_compiles_in_one_graph(bits, backend):
    made, x = layer(bits), torch.randn(3, 10)
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, backend=backend)
    gradients = []
    for run in (made, compiled):
        y = x.clone().requires_grad_()
        out = run(y)
        out.square().sum().backward()
        gradients.append((out.detach(), y.grad))
    torch.testing.assert_close(*gradients)


def test_every_plain_linear_layer_gives_way_and_no_other():
    class Other(nn.Linear):
        pass

    tree = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), "b": nn.Linear(4, 3, bias=False)})
    tree["c"] = Other(2, 2)
    replace_linear_layers(tree, None)
    assert not list(quantised_layers(tree))
    replace_linear_layers(tree, 4)
    made = dict(quantised_layers(tree))
    assert made.keys() == {"a.0", "b"}
    assert made["a.0"].bias is not None
    assert made["b"].bias is None
    assert made["b"].weight.shape == (3, 2)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layers_memory_is_its_bits_and_a_scale_a_row(bits):
    made = layer(bits, rows=64, columns=1024, bias=False)
    floats = 64 * 1024 * 2
    assert sum(b.nbytes for b in made.buffers()) / floats <= {4: 0.30, 8: 0.55}[bits]


def test_what_a_library_would_add_to_the_integers_fails_and_leaves_them_alone():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(nn.Sequential(layer(8)), LoraConfig(target_modules=["0"], init_lora_weights=False))
    x = torch.randn(2, 10)
    before = model(x)
    with pytest.raises(RuntimeError):
        model.merge_and_unload()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("family", ["glm", "glm2", "glm3"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_over_integers_computes_what_it_does_over_their_floats(bits, family, official_folders):
    """Loss, and every gradient that is left: embeddings, norms, biases and head."""
    from glmft.models.loading import load_config, load_model

    config = load_config(official_folders[family])
    config.quantization_bit = bits
    quantised = load_model(config, official_folders[family], torch.float32)
    config.quantization_bit = None
    floats = load_model(config, official_folders[family], torch.float32)
    names = [name for name, _ in quantised_layers(quantised)]
    assert len(names) == 4 * config.num_layers
    for name, module in quantised_layers(quantised):
        floats.get_submodule(name).weight.data = module.dequantised()
    prompt_end = [config.gmask_token_id, config.bos_token_id] if family == "glm" else []
    ids = torch.tensor([[5, 6, 7, *prompt_end, 8, 9]])
    for model in (quantised, floats):
        model(ids, labels=ids).loss.backward()
    expected = dict(floats.named_parameters())
    for name, parameter in quantised.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-6, msg=name)
    assert expected.keys() - dict(quantised.named_parameters()).keys() == {f"{name}.weight" for name in names}


@pytest.mark.slow
def test_a_whole_model_over_integers_compiles_in_one_graph(official_folders):
    from glmft.models.loading import load_config, load_model

    model = load_model(
        load_config(official_folders["glm2"], quantization_bit="4"), official_folders["glm2"], torch.float32
    )
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids, gradients = torch.tensor([[5, 6, 7, 8, 9, 10]]), []
    for run in (model, compiled):
        run(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)
