"""A forward pass from the middle of the model, given what comes into it there, is the whole pass."""

import pytest
import torch
from encoding import encoded

from glmft.data.collate import one_row
from glmft.data.encode import Lengths
from glmft.data.formats import single
from glmft.data.packing import join
from glmft.family import FAMILIES
from glmft.models.loading import load_config, load_model
from glmft.models.prefix import VirtualTokens
from glmft.settings.config import TrainConfig
from glmft.tokenizers.loading import load_tokenizer
from glmft.tuners import make_tuner

TEXTS = [("云川岭溪", "泉峰"), ("湖", "岛林松柏梅兰"), ("竹菊荷", "莲")]
LAYERS = 3


@pytest.fixture(scope="module", params=[*FAMILIES, "native-glm", "native-glm4"])
def family(request, all_folders):
    """A model whose last layer trains, and the batch of some rows."""
    folder = all_folders[request.param]
    tokenizer, config = load_tokenizer(folder), load_config(folder)
    assert config.num_hidden_layers == LAYERS
    examples, _ = encoded([single(*text) for text in TEXTS], tokenizer, Lengths(200, 100))
    return folder, lambda rows: one_row(rows, tokenizer), examples


def trained(folder, dtype: torch.dtype, **flags) -> torch.nn.Module:
    config = load_config(folder, quantization_bit=flags.pop("quantization_bit", None))
    flags = {"train_type": "freeze", "freeze_last_n": 1} | flags
    return make_tuner(TrainConfig(**flags)).apply(load_model(config, folder, dtype)).train()


def decoder(model: torch.nn.Module) -> VirtualTokens:
    return next(module for module in model.modules() if isinstance(module, VirtualTokens))


@torch.no_grad()
def states_before(model: torch.nn.Module, layer: int, batch: dict) -> torch.Tensor:
    given = {k: batch[k] for k in ("input_ids", "position_ids", "documents", "contexts") if k in batch}
    return decoder(model)(**given, use_cache=False, layers=range(layer)).last_hidden_state


def loss_and_gradients(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=1, return_logits=False, use_cache=False).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def from_the_middle(model: torch.nn.Module, layer: int, batch: dict) -> dict:
    rest = {k: v for k, v in batch.items() if k != "input_ids"}
    return rest | {"inputs_embeds": states_before(model, layer, batch), "layers": range(layer, LAYERS)}


def require_same_bits(model: torch.nn.Module, batch: dict, layer: int) -> None:
    loss, gradients = loss_and_gradients(model, batch)
    again, others = loss_and_gradients(model, from_the_middle(model, layer, batch))
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys() != set()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_loss_and_gradients_are_the_same_to_the_bit(family, dtype):
    folder, batch_of, examples = family
    model = trained(folder, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        require_same_bits(model, batch_of(examples), layer=2)


def test_a_lora_of_the_upper_layers_is_one_of_them(family):
    folder, batch_of, examples = family
    name = "model.layers.1.mlp.down_proj" if "native" in str(folder) else "layers.1.mlp.dense_4h_to_h"
    model = trained(folder, torch.float32, train_type="lora", lora_module_name=name, lora_dropout=0.0)
    require_same_bits(model, batch_of(examples), layer=1)


def test_states_of_a_row_do_not_depend_on_its_neighbours_or_on_packing(family):
    folder, batch_of, examples = family
    model = trained(folder, torch.float32)
    together, packed = (states_before(model, 2, batch_of(rows)) for rows in (examples, [join(examples)]))
    assert torch.equal(together, packed)
    alone = torch.cat([states_before(model, 2, batch_of([row])) for row in examples], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6 * alone.abs().max().item())
    others = batch_of(examples[::-1])
    turned = states_before(model, 2, others).split(others["documents"], dim=1)
    torch.testing.assert_close(torch.cat(turned[::-1], dim=1), alone, rtol=0, atol=1e-6 * alone.abs().max().item())


def test_a_quantised_base_gives_the_same_bits(official_folders):
    folder = official_folders["glm2"]
    examples, _ = encoded([single(*text) for text in TEXTS], load_tokenizer(folder), Lengths(200, 100))
    flags = {"train_type": "lora", "lora_module_name": "layers.2.mlp.dense_4h_to_h", "lora_dropout": 0.0}
    model = trained(folder, torch.float32, quantization_bit="4", **flags)
    require_same_bits(model, one_row(examples, load_tokenizer(folder)), layer=2)
