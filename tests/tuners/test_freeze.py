"""What freezing answers to names that match nothing."""

from glmft.models.loading import meta_model
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
