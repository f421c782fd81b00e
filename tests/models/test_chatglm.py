"""ChatGLM-6B against its rules spelled out with loops, and against itself by other routes."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from glmft.models.chatglm import ChatGLM6BForConditionalGeneration
from glmft.models.configuration import ChatGLM6BConfig
from glmft.models.positions import continued, two_dimensional_positions

PAD, SOP, MASK, GMASK = 3, 90, 91, 92
BACKENDS = ["sdpa", "eager"]


def make(backend: str = "sdpa", **changes) -> ChatGLM6BForConditionalGeneration:
    torch.manual_seed(0)
    config = ChatGLM6BConfig(
        vocab_size=97,
        hidden_size=48,
        num_layers=3,
        num_attention_heads=4,
        inner_hidden_size=72,
        bos_token_id=SOP,
        eos_token_id=93,
        mask_token_id=MASK,
        gmask_token_id=GMASK,
        pad_token_id=PAD,
        **changes,
    )
    model = ChatGLM6BForConditionalGeneration._from_config(config, attn_implementation=backend)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "layernorm.weight" in name else 0.0, 0.2)
    return model.eval()


def row(context: int, answer: int, seed: int = 1) -> Tensor:
    """[1, context + 2 + answer]: a context, [GMASK], <sop> and an answer."""
    words = torch.randint(5, 80, (context + answer,), generator=torch.Generator().manual_seed(seed))
    return torch.cat((words[:context], torch.tensor([GMASK, SOP]), words[context:]))[None]


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """ids and a mask of [b, s], 1 = real."""
    longest = max(r.shape[1] for r in rows)
    ids = torch.cat([nn.functional.pad(r, (longest - r.shape[1], 0), value=PAD) for r in rows])
    return ids, torch.stack([(torch.arange(longest) >= longest - r.shape[1]).long() for r in rows])


def by_rules(model: ChatGLM6BForConditionalGeneration, ids: Tensor, prefix: Tensor | None = None) -> Tensor:
    """Logits of one row, token by token and head by head; prefix [P, L, 2, heads, d]."""
    config, weights = model.config, dict(model.named_parameters())
    h, heads = config.hidden_size, config.num_attention_heads
    d, scale, tokens = h // heads, math.sqrt(2 * 28), ids[0].tolist()
    start, gap = tokens.index(SOP), tokens.index(GMASK)
    places = [(i, 0) if i < start else (gap, i - start + 1) for i in range(len(tokens))]
    frequencies = [float(torch.tensor(10000.0 ** (-2 * j / (d // 2))).half()) for j in range(d // 4)]

    def turn(vector: Tensor, place: tuple[int, int]) -> Tensor:
        out = vector.clone()
        for half, position in enumerate(place):
            for j, frequency in enumerate(frequencies):
                a, b = half * d // 2 + j, half * d // 2 + j + d // 4
                cos, sin = math.cos(position * frequency), math.sin(position * frequency)
                out[a], out[b] = vector[a] * cos - vector[b] * sin, vector[b] * cos + vector[a] * sin
        return out

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.pow(2).mean(-1, keepdim=True) + config.layernorm_epsilon).sqrt()
        return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    hidden = weights["transformer.word_embeddings.weight"][ids[0]]
    for layer in range(config.num_layers):
        name = f"transformer.layers.{layer}."
        x = norm(f"{name}input_layernorm", hidden)
        mixed = affine(f"{name}attention.query_key_value", x).view(-1, heads, 3, d)
        outputs = []
        for head in range(heads):
            query, key, value = mixed[:, head].unbind(1)
            query = torch.stack([turn(q, place) for q, place in zip(query, places, strict=True)])
            key = torch.stack([turn(k, place) for k, place in zip(key, places, strict=True)])
            visible = torch.tensor([[k < start or k <= q for k in range(len(tokens))] for q in range(len(tokens))])
            if prefix is not None:
                key, value = (torch.cat((prefix[:, layer, i, head], t)) for i, t in enumerate((key, value)))
                visible = torch.cat((torch.ones(len(tokens), len(prefix), dtype=torch.bool), visible), dim=1)
            scores = (query @ key.T / math.sqrt(d)).masked_fill(~visible, float("-inf"))
            outputs.append(scores.softmax(-1) @ value)
        hidden = scale * x + affine(f"{name}attention.dense", torch.cat(outputs, -1))
        y = norm(f"{name}post_attention_layernorm", hidden)
        inner = affine(f"{name}mlp.dense_h_to_4h", y)
        inner = 0.5 * inner * (1 + torch.tanh(0.7978845608 * inner * (1 + 0.044715 * inner * inner)))
        hidden = scale * y + affine(f"{name}mlp.dense_4h_to_h", inner)
    return norm("transformer.final_layernorm", hidden) @ weights["transformer.word_embeddings.weight"].T


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefix", [None, 3])
def test_logits_and_gradients_follow_the_rules(backend, prefix):
    model, ids = make(backend, pre_seq_len=prefix), row(5, 4)
    table = None
    if prefix:
        table = model.transformer.prefix_encoder.embedding.weight.view(prefix, 3, 2, 4, 12)
    expected = by_rules(model, ids, table)
    torch.testing.assert_close(model(ids).logits[0], expected, atol=1e-4, rtol=1e-4)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(nn.functional.cross_entropy(expected[6:-1], ids[0, 7:]), parameters)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 7, -100)
    for ours, theirs in zip(torch.autograd.grad(model(ids, labels=labels).loss, parameters), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_positions_of_context_and_answer():
    config = make().config
    ids, mask = left_padded([row(3, 2), row(1, 2)])
    assert two_dimensional_positions(config, ids, mask).tolist() == [
        [[0, 1, 2, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3]],
        [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 2, 3]],
    ]
    only_mask = torch.tensor([[MASK, 7, SOP, 8]])
    assert two_dimensional_positions(config, only_mask).tolist() == [[[0, 1, 0, 0], [0, 0, 1, 2]]]
    both = torch.tensor([[MASK, GMASK, SOP]])
    assert two_dimensional_positions(config, both).tolist() == [[[0, 1, 1], [0, 0, 1]]]
    assert continued(torch.tensor([[[0, 1, 1], [0, 0, 1]]]), 2).tolist() == [[[0, 1, 1, 1, 1], [0, 0, 1, 2, 3]]]


def test_special_tokens_in_the_padding_do_not_count():
    config, ids = make().config, row(3, 2)
    padded = torch.cat((torch.tensor([[SOP, GMASK, MASK]]), ids), dim=1)
    mask = torch.tensor([[0, 0, 0] + [1] * ids.shape[1]])
    positions = two_dimensional_positions(config, padded, mask)
    assert positions[:, :, :3].tolist() == [[[0] * 3] * 2]
    assert torch.equal(positions[:, :, 3:], two_dimensional_positions(config, ids))
    with pytest.raises(ValueError, match="row 0 of input_ids holds no <sop>"):
        two_dimensional_positions(config, torch.tensor([[SOP, GMASK, 7]]), torch.tensor([[0, 1, 1]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_cache_changes_nothing(backend):
    """The context is seen in both directions, as `generate` starts with such a cache."""
    model, ids = make(backend), row(5, 2)
    torch.testing.assert_close(model(ids, past_key_values=DynamicCache()).logits, model(ids).logits)


@pytest.mark.parametrize(("ids", "name"), [([[GMASK, 7]], "<sop>"), ([[7, SOP]], r"\[gMASK\] or \[MASK\]")])
def test_a_row_without_its_special_tokens_is_named(ids, name):
    with pytest.raises(ValueError, match=f"row 0 of input_ids holds no {name}"):
        make()(torch.tensor(ids))


@pytest.mark.parametrize("prefix", [None, 3])
def test_masks_of_two_and_four_dimensions_and_backends_agree(prefix):
    rows = [row(6, 3), row(2, 4, seed=2)]
    ids, mask = left_padded(rows)
    positions = two_dimensional_positions(make().config, ids, mask)
    start = (ids == SOP).int().argmax(1)
    column = torch.arange(ids.shape[1])
    hidden = (column[None, None] > column[None, :, None]) & (column[None, None] >= start[:, None, None])
    hidden = (hidden | (mask[:, None] == 0) | (mask[:, :, None] == 0))[:, None]
    for backend in BACKENDS:
        model = make(backend, pre_seq_len=prefix)
        for arguments in (
            {"attention_mask": mask},
            {"attention_mask": mask, "position_ids": positions},
            {"attention_mask": hidden, "position_ids": positions},
        ):
            logits = model(ids, **arguments).logits
            for i, single in enumerate(rows):
                alone = make(pre_seq_len=prefix)(single).logits[0]
                torch.testing.assert_close(logits[i, -single.shape[1] :], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk", [1, 2])
def test_steps_with_a_cache_equal_the_whole_forward(backend, chunk):
    model, ids = make(backend), row(4, 6)
    positions = two_dimensional_positions(model.config, ids)
    whole = model(ids).logits
    out = model(ids[:, :6], use_cache=True)
    parts = [out.logits]
    for first in range(6, 12, chunk):
        part = slice(first, first + chunk)
        mask = torch.ones(1, first + chunk, dtype=torch.long)
        out = model(
            ids[:, part], position_ids=positions[..., part], attention_mask=mask, past_key_values=out.past_key_values
        )
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_positions_must_be_given_where_the_ids_do_not_tell():
    model, ids = make(), row(3, 2)
    past = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"position_ids .* beside past_key_values"):
        model(torch.tensor([[7]]), past_key_values=past)
    with pytest.raises(ValueError, match=r"position_ids .* beside inputs_embeds"):
        model(inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match=r"ChatGLM-6B's are \[b, 2, s\]"):
        model(ids, position_ids=torch.arange(7)[None])
    positions = two_dimensional_positions(model.config, ids)
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds, position_ids=positions).logits, model(ids).logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_documents_do_not_see_each_other(backend):
    model, rows = make(backend), [row(4, 3), row(2, 5, seed=2)]
    positions = torch.cat([two_dimensional_positions(model.config, r) for r in rows], dim=-1)
    logits = model(torch.cat(rows, dim=1), position_ids=positions, use_cache=False).logits
    first = rows[0].shape[1]
    torch.testing.assert_close(logits[:, :first], model(rows[0]).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[:, first:], model(rows[1]).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", [None, 3])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str
)
def test_a_left_padded_batch_generates_what_each_row_generates_alone(prefix, options):
    model, rows = make(pre_seq_len=prefix), [row(6, 0), row(2, 0, seed=2), row(3, 0, seed=3)]
    ids, mask = left_padded(rows)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD, **options}
    together = model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    for i, single in enumerate(rows):
        assert model.generate(single, **settings)[0, single.shape[1] :].tolist() == together[i].tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_greedy_over_whole_forwards(use_cache):
    model, ids = make(), row(4, 0)
    longer = ids
    for _ in range(5):
        longer = torch.cat((longer, model(longer, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "use_cache": use_cache}
    for positions in (None, two_dimensional_positions(model.config, ids)):
        assert model.generate(ids, position_ids=positions, **settings).tolist() == longer.tolist()


def test_generation_from_embeddings_needs_positions_and_then_is_that_from_ids():
    model, ids = make(), row(4, 0)
    embeds = model.get_input_embeddings()(ids)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    with pytest.raises(ValueError, match=r"^give position_ids \[b, 2, s\] beside inputs_embeds; ChatGLM-6B reads"):
        model.generate(inputs_embeds=embeds, **settings)
    new = model.generate(inputs_embeds=embeds, position_ids=two_dimensional_positions(model.config, ids), **settings)
    assert new.tolist() == model.generate(ids, **settings)[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("prefix", [None, 3])
def test_gradient_checkpointing_changes_no_gradient(prefix, same_gradients_checkpointed):
    same_gradients_checkpointed(make(pre_seq_len=prefix), row(4, 4))


def test_the_head_is_the_embedding():
    model = make()
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert "lm_head.weight" in model.state_dict()
    with pytest.raises(NotImplementedError, match="vocabulary of 97 ids is fixed"):
        model.resize_token_embeddings(120)
