from types import SimpleNamespace

import torch

from glmft.settings.config import TrainConfig
from glmft.training.memory import GIB, Sizes, activation_bytes, advice, sizes

SHAPE_6B = {"layers": 28, "hidden": 4096, "ffn": 13696, "width": 2}
BIG = Sizes(weights=12 * GIB, base=12 * GIB, trained=10**7, tokens=4 * 1024, **SHAPE_6B, quantisable=8 * GIB)


def test_sizes_are_read_off_a_model(tiny_model):
    model = tiny_model()
    model.requires_grad_(False)
    model.transformer.output_layer.weight.requires_grad_(True)
    trained = model.transformer.output_layer.weight.numel()
    found = sizes(model, [5, 9, 7], TrainConfig(per_device_train_batch_size=2), width=4)
    assert (found.trained, found.tokens, found.layers) == (trained, 18, model.config.num_hidden_layers)
    assert found.weights - found.base == 4 * trained


def test_partitioned_parameters_count_whole():
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_shape = torch.Size((20, 5))
    shape = SimpleNamespace(num_hidden_layers=1, hidden_size=4, ffn_hidden_size=8)
    model = torch.nn.Module()
    model.weight, model.config = parameter, shape
    assert sizes(model, [3], TrainConfig(), width=2).weights == 400


def test_a_quantised_base_counts_its_bytes_and_has_nothing_left_to_quantise(official_folders):
    from glmft.models.loading import load_config, load_model

    found = {}
    for bits in (None, "4"):
        config = load_config(official_folders["glm2"], quantization_bit=bits)
        model = load_model(config, official_folders["glm2"], torch.float16).requires_grad_(False)
        found[bits] = sizes(model, [5], TrainConfig(), width=2)
    scales = 2 * 3 * (128 + 48 + 80 + 48)  # float16, a row each of the four matrices of three layers
    assert found[None].quantisable > 0
    assert found["4"].quantisable == 0
    assert found["4"].base == found["4"].weights == found[None].base - found[None].quantisable + scales


def test_activations_of_the_6b_model_are_of_the_published_order():
    """ChatGLM2-6B, LoRA, 1 x 1560 tokens: 43 - 20 GB published between without and with checkpointing."""
    one = activation_bytes(Sizes(**{**vars(BIG), "tokens": 1560}))
    assert 5 * GIB < one < 23 * GIB


def test_advice_comes_in_order_with_what_each_step_saves():
    ways = advice(BIG, TrainConfig(per_device_train_batch_size=4), stage=0, offloads=False, ranks=4)
    wanted = ["--gradient_checkpointing", "--per_device_train_batch_size 2 with --gradient_accumulation_steps 2"]
    wanted += [
        "ds_zero2_no_offload.json",
        "ds_zero3_no_offload.json saves about 9.00 GiB",
        "ds_zero2_offload.json",
        "--quantization_bit 4 saves about 8.00 GiB of weights",
    ]
    assert [part in way for part, way in zip(wanted, ways, strict=True)] == [True] * 6


def test_what_is_done_already_is_not_advised():
    config = TrainConfig(per_device_train_batch_size=1, gradient_checkpointing=True)
    ways = " ".join(advice(BIG, config, stage=3, offloads=True, ranks=1))
    assert "checkpointing" not in ways
    assert "ds_zero" not in ways
    assert "--max_len" in ways
