"""In half precision the models are no further from the float32 goldens than the official code itself is."""

import pytest
import torch
from safetensors.torch import load_file

from glmft.models.loading import load_config, load_model

CASES = [("glm1", "gmask_left_pad"), ("glm1", "gmask_right_pad"), ("glm2", "left_pad"), ("glm3", "left_pad")]
# What the goldens' README says of the official code: largest difference of a logit, relative one of the loss.
OFFICIAL = {torch.float16: (0.12, 7e-4), torch.bfloat16: (1.0, 4e-3)}


@pytest.mark.parametrize("dtype", OFFICIAL, ids=str)
@pytest.mark.parametrize(("family", "case"), CASES)
def test_half_precision_is_as_near_as_the_official_code(family, case, dtype, shared):
    folder = shared / "goldens" / family
    model = load_model(load_config(folder, family.replace("1", "")), folder, dtype).eval()
    tensors = load_file(folder / "cases" / f"{case}.safetensors")
    with torch.no_grad():
        out = model(**{n.removeprefix("in."): t for n, t in tensors.items() if n.startswith("in.")}, return_logits=True)
    rows, columns = tensors["out.logits_pos"].unbind(1)
    logits, loss = OFFICIAL[dtype]
    assert (out.logits[rows, columns].float() - tensors["out.logits"]).abs().max() <= logits
    assert abs(out.loss.item() / tensors["out.loss"].item() - 1) <= loss
