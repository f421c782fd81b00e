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


@pytest.mark.parametrize("layout", ["rows", "documents"])
@pytest.mark.parametrize("family", ["glm", "glm2", "native-glm"])
def test_dropout_draws_for_each_record(family, layout, all_folders):
    """Two equal records have two losses in training, as officially, and one where dropout is off."""
    config = load_config(all_folders[family])
    model = Prefix(4, False, prefix_dropout=0.5).apply(load_model(config, all_folders[family], torch.float32))
    rows, places = torch.arange(5, 9).repeat(2, 1), torch.arange(4).repeat(2, 1)
    if family == "glm":
        places = torch.stack((places, torch.zeros_like(places)), dim=1)
    batch = {"input_ids": rows, "position_ids": places, "attention_mask": torch.ones_like(rows)}
    if layout == "documents":
        batch = {"input_ids": rows.view(1, 8), "position_ids": torch.cat(tuple(places), dim=-1)[None]}
        batch |= {"documents": (4, 4), "contexts": (4, 4)} if family == "glm" else {"documents": (4, 4)}
    alike = {}
    for trains in (False, True):
        torch.manual_seed(0)
        first, second = model.train(trains)(**batch, use_cache=False).logits.reshape(2, 4, -1)
        alike[trains] = torch.allclose(first, second, atol=1e-5)
    assert alike == {False: True, True: False}
