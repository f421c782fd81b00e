"""Packed rows: every document once, and the loss and gradients of the documents one by one."""

import random

import pytest
import torch
from encoding import encoded

from glmft.data.collate import collate
from glmft.data.encode import Example, Lengths
from glmft.data.formats import single
from glmft.data.packing import PackedRows, pack
from glmft.family import FAMILIES
from glmft.models.loading import load_config, load_model
from glmft.tokenizers.loading import load_tokenizer
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt


@pytest.mark.parametrize("seed", range(4))
def test_every_document_is_in_one_row_and_no_row_is_too_long(seed):
    rng = random.Random(seed)
    examples = [Example([i] * rng.randint(1, 30), ((0, 1),), str(i)) for i in range(200)]
    lengths = [len(example.ids) for example in examples]
    packs = pack(lengths, 64, seed)
    assert sorted(i for row in packs for i in row) == list(range(200))
    assert len(packs) <= 1.05 * sum(lengths) / 64 + 1
    assert pack(lengths, 64, seed) == packs
    rows = PackedRows(examples, packs)
    assert all(len(row.ids) == sum(row.parts) <= 64 for row in rows)
    assert sum(row.supervised for row in rows) == 200
    assert rows[-1].place == ", ".join(str(i) for i in packs[-1])


@pytest.mark.parametrize("seed", range(4))
def test_long_documents_are_placed_first_so_that_short_ones_fill_their_rows(seed):
    """Twenty of each length, which fill twenty rows to the last token, in this way alone."""
    lengths = [51, 34, 15] * 20
    rows = pack(lengths, 100, seed)
    assert [sorted(lengths[i] for i in row) for row in rows] == [[15, 34, 51]] * 20


def test_documents_of_a_row_and_of_one_length_come_in_an_order_of_the_seed():
    rows = {seed: pack([10] * 40, 100, seed) for seed in range(3)}
    assert [len(row) for row in rows[0]] == [10] * 4
    assert rows[0] != rows[1] != rows[2]
    assert all(row != sorted(row) for row in rows[0])


def test_a_document_that_is_too_long_has_a_row_of_its_own():
    assert sorted(map(sorted, pack([120, 100, 1], 100, 0))) == [[0], [1], [2]]


@pytest.mark.parametrize("tuner", [None, Prefix(3, False), Prompt(3, "none")], ids=["base", "prefix", "prompt"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, "native-glm", "native-glm4"])
def test_loss_and_gradients_are_those_of_the_documents_one_by_one(family, backend, tuner, all_folders):
    folder = all_folders[family]
    tokenizer = load_tokenizer(folder)
    texts = [("云川岭溪", "泉峰"), ("湖", "岛林松柏梅兰"), ("竹菊荷", "莲"), ("桃杏", "梨枫桐"), ("槐柳榆鹤", "雁")]
    examples, _ = encoded([single(*text) for text in texts], tokenizer, Lengths(200, 100))
    longest = 2 * max(len(example.ids) for example in examples)
    packed = PackedRows(examples, pack([len(example.ids) for example in examples], longest, seed=0))[:]
    assert 1 < len(packed) < len(examples)
    torch.manual_seed(0)
    model = load_model(load_config(folder), folder, torch.float32, backend)
    model = (tuner.apply(model) if tuner else model).eval()
    gradients, losses = [], []
    for groups in ([packed], [[example] for example in examples]):
        model.zero_grad()
        total = 0.0
        for group in groups:
            loss = model(**collate(group, tokenizer), num_items_in_batch=1).loss
            loss.backward()
            total += loss.item()
        losses.append(total)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name
