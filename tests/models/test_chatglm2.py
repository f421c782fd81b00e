"""ChatGLM2 against transformers' own GLM, against itself by other routes, and against computations by hand."""

import pytest
import torch
from torch import Tensor, nn
from transformers import GlmConfig, GlmForCausalLM

BACKENDS = ["sdpa", "eager"]
WITNESSED = {
    "one group": {"multi_query_group_num": 1},
    "two groups": {"multi_query_group_num": 2},
    "a group for each head": {"multi_query_group_num": 4},
    "longer rotary base": {"rope_ratio": 50},
    "other head size": {"kv_channels": 24, "num_attention_heads": 2, "multi_query_group_num": 1},
    "no bias": {"add_qkv_bias": False},
}


def as_glm(model: nn.Module) -> GlmForCausalLM:
    """transformers' GLM with the same weights."""
    config = model.config
    other = GlmConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        attention_bias=config.add_qkv_bias,
        rms_norm_eps=config.layernorm_epsilon,
        tie_word_embeddings=False,
        max_position_embeddings=config.seq_length,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * config.rope_ratio,
            "partial_rotary_factor": 0.5,
        },
    )
    glm = GlmForCausalLM._from_config(other, attn_implementation="eager").eval()
    glm.load_state_dict(convert({name: p.detach() for name, p in model.named_parameters()}, config))
    return glm


def convert(ours: dict[str, Tensor], config) -> dict[str, Tensor]:
    """Tensors of ChatGLM2's layout under the names, and in the parts, of transformers' GLM."""
    groups = config.multi_query_group_num * config.kv_channels
    sizes = [config.num_attention_heads * config.kv_channels, groups, groups]
    theirs = {
        "model.embed_tokens.weight": ours["transformer.embedding.word_embeddings.weight"],
        "model.norm.weight": ours["transformer.encoder.final_layernorm.weight"],
        "lm_head.weight": ours["transformer.output_layer.weight"],
    }
    for i in range(config.num_layers):
        here, there = f"transformer.encoder.layers.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias") if config.add_qkv_bias else ("weight",):
            parts = ours[f"{here}self_attention.query_key_value.{kind}"].split(sizes)
            for name, part in zip("qkv", parts, strict=True):
                theirs[f"{there}self_attn.{name}_proj.{kind}"] = part
        theirs[f"{there}self_attn.o_proj.weight"] = ours[f"{here}self_attention.dense.weight"]
        theirs[f"{there}mlp.gate_up_proj.weight"] = ours[f"{here}mlp.dense_h_to_4h.weight"]
        theirs[f"{there}mlp.down_proj.weight"] = ours[f"{here}mlp.dense_4h_to_h.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            theirs[f"{there}{norm}.weight"] = ours[f"{here}{norm}.weight"]
    return theirs


def ids(rows: int = 2, length: int = 13, vocabulary: int = 97) -> Tensor:
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", WITNESSED.values(), ids=WITNESSED.keys())
@pytest.mark.parametrize("length", [1, 7, 32])
def test_logits_and_gradients_equal_those_of_transformers_glm(changes, length, tiny_model):
    model = tiny_model(**changes)
    glm = as_glm(model)
    rows = ids(2, length)
    torch.testing.assert_close(model(rows).logits, glm(rows).logits, atol=2e-5, rtol=1e-4)
    if length > 1:
        model(rows, labels=rows).loss.backward()
        glm(rows, labels=rows).loss.backward()
        ours = convert({name: p.grad for name, p in model.named_parameters()}, model.config)
        for name, parameter in glm.named_parameters():
            torch.testing.assert_close(ours[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("prefix", [0, 5])
def test_backends_agree_with_and_without_padding(prefix, tiny_model):
    rows, mask = ids(3, 11), torch.ones(3, 11, dtype=torch.long)
    mask[0, :4] = 0
    mask[2, :7] = 0
    for attention_mask in (None, mask):
        logits = [
            tiny_model(backend, pre_seq_len=prefix or None)(rows, attention_mask=attention_mask).logits
            for backend in BACKENDS
        ]
        real = mask.bool() if attention_mask is not None else torch.ones_like(mask).bool()
        torch.testing.assert_close(logits[0][real], logits[1][real], atol=2e-5, rtol=1e-4)


def test_a_prefix_is_extra_keys_and_values_that_every_token_sees(tiny_model):
    """One layer's attention spelled out with loops over heads."""
    model = tiny_model(num_layers=1, pre_seq_len=3)
    config, rows = model.config, ids(1, 6)
    core = model.transformer
    layer = core.encoder.layers[0]
    table = core.prefix_encoder.embedding.weight.view(3, 1, 2, config.multi_query_group_num, config.kv_channels)
    hidden = core.embedding.word_embeddings(rows)
    rotary = core.rotary_pos_emb(torch.arange(6)[None], torch.float32)

    from glmft.models.chatglm2 import apply_rotary

    mixed = layer.self_attention.query_key_value(layer.input_layernorm(hidden)).view(6, -1, config.kv_channels)
    query, key, value = (t.transpose(0, 1) for t in mixed.split([4, 2, 2], dim=1))  # [heads or groups, 6, d]
    query, key = apply_rotary(query[None], *rotary)[0], apply_rotary(key[None], *rotary)[0]
    outputs = []
    for head in range(4):
        group = head // 2
        keys = torch.cat((table[:, 0, 0, group], key[group]))
        values = torch.cat((table[:, 0, 1, group], value[group]))
        scores = query[head] @ keys.T / config.kv_channels**0.5
        hidden_from = torch.arange(9)[None] > torch.arange(6)[:, None] + 3
        outputs.append(scores.masked_fill(hidden_from, float("-inf")).softmax(-1) @ values)
    attended = hidden + layer.self_attention.dense(torch.cat(outputs, dim=-1))
    expected = attended + layer.mlp(layer.post_attention_layernorm(attended))
    states = model(rows, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[-1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [None, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_documents_do_not_see_each_other(prefix, backend, tiny_model):
    model = tiny_model(backend, pre_seq_len=prefix)
    first, second = ids(1, 5), ids(1, 9)[:, 2:]
    packed = torch.cat((first, second), dim=1)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    logits = model(packed, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits[:, :5], model(first).logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[:, 5:], model(second).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [None, 4])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk", [1, 3])
def test_steps_with_a_cache_equal_the_whole_forward(prefix, backend, chunk, tiny_model):
    model = tiny_model(backend, pre_seq_len=prefix)
    rows = ids(2, 10)
    whole, past, parts = model(rows).logits, None, []
    for first in range(0, 10, chunk):
        out = model(rows[:, first : first + chunk], past_key_values=past, use_cache=True)
        past = out.past_key_values
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [None, 4])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_a_left_padded_batch_generates_what_each_row_generates_alone(prefix, options, tiny_model):
    model = tiny_model(pre_seq_len=prefix)
    rows, lengths = ids(3, 9), [9, 4, 6]
    mask = torch.stack([(torch.arange(9) >= 9 - n).long() for n in lengths])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    together = model.generate(rows, attention_mask=mask, **settings)[:, 9:]
    for row, length in enumerate(lengths):
        alone = model.generate(rows[row : row + 1, 9 - length :], **settings)[:, length:]
        assert together[row].tolist() == alone[0].tolist()


def test_generation_stops_at_the_end_token_of_the_config(tiny_model):
    model = tiny_model()
    free = model.generate(ids(1, 4), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 4:]
    model.config.eos_token_id = model.generation_config.eos_token_id = int(free[2])
    first = free.tolist().index(int(free[2]))
    assert len(model.generate(ids(1, 4), max_new_tokens=8, do_sample=False)[0, 4:]) == first + 1


@pytest.mark.parametrize("prefix", [None, 4])
def test_gradient_checkpointing_changes_no_gradient(prefix, tiny_model, same_gradients_checkpointed):
    same_gradients_checkpointed(tiny_model(pre_seq_len=prefix), ids())


def test_loss_is_the_mean_over_supervised_tokens_and_logits_come_when_asked_for(tiny_model):
    model, rows = tiny_model(), ids()
    labels = rows.masked_fill(torch.arange(13) < 6, -100)
    out = model.train()(rows, labels=labels)
    assert out.logits is None
    logits = model(rows).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(model(rows, labels=labels, num_items_in_batch=10).loss, expected * 14 / 10)
    torch.testing.assert_close(model(rows, labels=labels, return_logits=True).logits, logits)
    torch.testing.assert_close(model(rows, logits_to_keep=1).logits, logits[:, -1:])
    assert model(rows, labels=labels, return_dict=False)[0] == out.loss


def test_inputs_embeds_stand_in_for_ids(tiny_model):
    model, rows = tiny_model(), ids()
    embeds = model.get_input_embeddings()(rows)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(rows).logits)
    with pytest.raises(ValueError, match="exactly one of"):
        model(rows, inputs_embeds=embeds)


def test_resizing_the_vocabulary_is_refused_with_a_reason(tiny_model):
    with pytest.raises(NotImplementedError, match="vocabulary of 97 ids is fixed"):
        tiny_model().resize_token_embeddings(120)


def test_no_mask_is_made_where_plain_causal_suffices(tiny_model, monkeypatch):
    """Both with and without a prefix the kernel is told `is_causal`, which keeps the fast path."""
    seen = []
    attention = nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **options):
        seen.append((attn_mask is None, options["is_causal"], query.shape[2] == key.shape[2]))
        return attention(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    for prefix in (None, 4):
        tiny_model(pre_seq_len=prefix).train()(ids(), labels=ids())
    assert seen
    assert set(seen) == {(True, True, True)}


def test_positions_are_divided_in_the_older_long_context_code(tiny_model):
    """chatglm2-6b-32k's first code: position / rope_ratio; later code: base * rope_ratio."""
    divided = tiny_model(rope_ratio=4, rope_ratio_scales="positions")
    plain = tiny_model()
    rows = ids(1, 4)
    torch.testing.assert_close(
        divided(rows, position_ids=torch.tensor([[0, 4, 8, 12]]), attention_mask=torch.ones(1, 4)).logits,
        plain(rows).logits,
        atol=1e-5,
        rtol=1e-4,
    )
