"""Nothing between a batch and its gradients looks at a value of a tensor: an accelerator never has to be waited for.

On the meta device there are no values, so any such look raises.
"""

import pytest
import torch
from encoding import encoded

from glmft.data.collate import collate, one_row
from glmft.data.encode import Lengths
from glmft.data.formats import single
from glmft.data.packing import PackedRows, pack
from glmft.family import FAMILIES
from glmft.models.checkpointing import checkpoint_layers
from glmft.models.loading import load_config, meta_model
from glmft.settings.config import TUNERS, TrainConfig
from glmft.tokenizers.loading import load_tokenizer
from glmft.tuners import make_tuner

TEXTS = [("云川岭溪", "泉峰"), ("湖", "岛林松柏梅兰"), ("竹菊荷", "莲"), ("桃杏", "梨枫桐")]
FLAGS = {"freeze": {"freeze_last_n": 1}, "lora": {"lora_module_name": "all-linear"}}


@pytest.fixture(scope="module", params=[*FAMILIES, "native-glm", "native-glm4"])
def family(request, all_folders):
    """A model's configuration, and its batches by name."""
    folder = all_folders[request.param]
    tokenizer = load_tokenizer(folder)
    examples, _ = encoded([single(*text) for text in TEXTS], tokenizer, Lengths(200, 100))
    longest = 2 * max(len(example.ids) for example in examples)
    packed = PackedRows(examples, pack([len(example.ids) for example in examples], longest, seed=0))[:]
    batches = {
        "padded": collate(examples, tokenizer),
        "one row": one_row(examples, tokenizer),
        "packed": one_row(packed, tokenizer),
    }
    return folder, batches


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("tuner", TUNERS)
def test_forward_and_backward_need_no_values(tuner, checkpointing, family):
    folder, batches = family
    with torch.device("meta"):
        model = make_tuner(TrainConfig(train_type=tuner, **FLAGS.get(tuner, {}))).apply(meta_model(load_config(folder)))
    checkpoint_layers(model, every=int(checkpointing))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for name, batch in batches.items():
        if name == "padded" and "attention_mask" in batch:
            continue  # transformers asks a mask whether it hides anything
        model.zero_grad()
        on_meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        model(**on_meta, num_items_in_batch=1, return_logits=False, use_cache=False).loss.backward()
        assert all(p.grad is not None for p in trained), name
