"""What layers cost in time, for stages that take equally long."""

import pytest
import torch

from glmft.dist import World
from glmft.models.partition import balanced
from glmft.training.layer_times import Seconds, layer_times, weights_by_time

LAYER = Seconds(forward=1.0, frozen=2.0, trained=3.0)
LORA = [f"base_model.model.transformer.encoder.layers.{i}.mlp.lora_A.default.weight" for i in range(4)]
FULL = [f"transformer.encoder.layers.{i}.mlp.weight" for i in range(4)]


@pytest.mark.parametrize(
    ("trained", "recomputes", "want"),
    [
        (LORA, False, [2, 2, 2, 2]),
        (LORA, True, [3, 3, 3, 3]),
        (["transformer.embedding.weight", *FULL], False, [3, 3, 3, 3]),
        (FULL[3:], False, [1, 1, 1, 3]),
        (FULL[1:2], True, [1, 4, 3, 3]),
        (["transformer.prefix_encoder.embedding.weight"], False, [2, 2, 2, 2]),
        (["transformer.output_layer.weight"], False, [1, 1, 1, 1]),
    ],
)
def test_a_layer_costs_what_has_to_be_done_for_what_trains(trained, recomputes, want):
    layers, before, behind = weights_by_time(LAYER, 5.0, 4, trained, recomputes)
    assert (layers, before, behind) == (want, 0.0, 5.0)


def test_layers_that_are_frozen_below_what_trains_are_more_on_a_stage():
    weights = weights_by_time(LAYER, 0.5, 8, [name.replace("layers.3", "layers.7") for name in FULL[3:]], False)
    assert balanced(*weights, 2) == (5, 3)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_layer_is_measured_by_itself(bits, tiny_config):
    config = tiny_config(quantization_bit=bits)
    ids = torch.arange(60)[None] % 90
    batch = {"input_ids": ids, "labels": ids, "loss_positions": torch.arange(59), "documents": (60,)}
    batch["position_ids"] = torch.arange(60)[None]
    before = torch.get_rng_state()
    layer, head = layer_times(config, batch, World(0, 0, 1, torch.device("cpu"), torch.float32))
    assert 0 <= layer.forward <= layer.frozen <= layer.trained
    assert head >= 0
    assert torch.equal(torch.get_rng_state(), before)
    assert config.num_hidden_layers == 3
