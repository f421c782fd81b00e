"""What freezing trains where nothing is named, and what it answers to names that match nothing."""

import pytest

from glmft.family import FAMILIES
from glmft.models.loading import load_config, meta_model
from glmft.settings.config import TrainConfig
from glmft.tuners import make_tuner
from glmft.tuners.freeze import Freeze


def test_what_can_be_frozen_is_listed_with_the_layers_in_one_line_each(tiny_config):
    """Every parameter outside the layers, and those of one layer with the numbers of all."""
    [problem] = Freeze("layers.3.").problems(meta_model(tiny_config()))
    assert problem.split("there are ")[1].split(", ") == [
        "transformer.embedding.word_embeddings.weight",
        "transformer.encoder.layers.0…2.input_layernorm.weight",
        "transformer.encoder.layers.0…2.self_attention.query_key_value.weight",
        "transformer.encoder.layers.0…2.self_attention.query_key_value.bias",
        "transformer.encoder.layers.0…2.self_attention.dense.weight",
        "transformer.encoder.layers.0…2.post_attention_layernorm.weight",
        "transformer.encoder.layers.0…2.mlp.dense_h_to_4h.weight",
        "transformer.encoder.layers.0…2.mlp.dense_4h_to_h.weight",
        "transformer.encoder.final_layernorm.weight",
        "transformer.output_layer.weight",
    ]


@pytest.mark.parametrize("family", [*FAMILIES, "native-glm", "native-glm4"])
def test_alone_it_trains_the_last_layer_of_whatever_model_it_is(family, all_folders):
    model = meta_model(load_config(all_folders[family]))
    alone = make_tuner(TrainConfig(train_type="freeze"))
    names = [name for name, _ in model.named_parameters()]
    last = f".layers.{model.config.num_hidden_layers - 1}."
    assert alone.problems(model) == []
    assert alone.chosen(names) == {name for name in names if last in name} != set()


def test_a_part_of_the_last_layer_can_be_named():
    names = [
        f"transformer.encoder.layers.{i}.{part}.weight" for i in (0, 1) for part in ("mlp.dense", "self_attention")
    ]
    assert make_tuner(TrainConfig(train_type="freeze", freeze_part="mlp")).chosen(names) == {names[2]}
