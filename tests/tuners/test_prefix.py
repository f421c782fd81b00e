"""P-Tuning v2's parameters."""

import math

import pytest
import torch

from glmft.models.loading import load_config, load_model
from glmft.tuners.prefix import Prefix


@pytest.mark.parametrize("width", [None, 20])
@pytest.mark.parametrize("family", ["glm", "glm2"])
def test_a_projected_prefix_has_the_official_shapes(family, width, official_folders):
    """Embedding, linear, tanh, linear; the official code of ChatGLM2 gives the embedding the full width."""
    config = load_config(official_folders[family])
    model = Prefix(4, True, width).apply(load_model(config, official_folders[family], torch.float32))
    keys_values = 2 * math.prod(config.key_value_shape)
    embedding = config.hidden_size if family == "glm" else keys_values
    inside = config.hidden_size if width is None else width
    shapes = {n.split("prefix_encoder.")[1]: list(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert shapes == {
        "embedding.weight": [4, embedding],
        "trans.0.weight": [inside, embedding],
        "trans.0.bias": [inside],
        "trans.2.weight": [keys_values, inside],
        "trans.2.bias": [keys_values],
    }
