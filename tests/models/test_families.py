"""What transformers' own machinery does with a model of each family."""

import shutil

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, TextIteratorStreamer

import glmft  # noqa: F401 (registers the Auto classes)
from glmft.family import FAMILIES
from glmft.models.head import positions_with_target
from glmft.tokenizers.base import FamilyTokenizer

TEXTS = ["云川岭溪泉峰湖", "云川"]


@pytest.fixture(params=FAMILIES)
def folder(request, official_folders):
    return official_folders[request.param]


def parts(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


def test_an_official_folder_goes_through_the_auto_classes(folder):
    model, tokenizer = parts(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert isinstance(tokenizer, FamilyTokenizer)
    assert logits(model, batch).isfinite().all()
    assert model.generate(**batch, max_new_tokens=3, do_sample=False).shape[1] == batch["input_ids"].shape[1] + 3


def test_a_cache_is_kept_outside_of_training_unless_the_call_or_the_configuration_says_otherwise(folder):
    model, tokenizer = parts(folder)
    batch = dict(tokenizer(TEXTS[:1], return_tensors="pt"))

    def keeps(**options) -> bool:
        with torch.no_grad():
            return model(**batch, **options).past_key_values is not None

    assert [keeps(), keeps(use_cache=True), keeps(use_cache=False)] == [True, True, False]
    model.config.use_cache = False
    assert [keeps(), keeps(use_cache=True)] == [False, True]
    model.config.use_cache = True
    model.train()
    assert [keeps(), keeps(use_cache=True)] == [False, True]


def test_hidden_states_come_when_they_are_asked_for(folder):
    model, tokenizer = parts(folder)
    batch = dict(tokenizer(TEXTS[:1], return_tensors="pt"))
    with torch.no_grad():
        assert model(**batch).hidden_states is None
        states = model(**batch, output_hidden_states=True).hidden_states
        model.config.output_hidden_states = True
        assert model(**batch, output_hidden_states=False).hidden_states is None
        by_config = model(**batch).hidden_states
        words = model.get_input_embeddings()(batch["input_ids"])
    assert len(states) == len(by_config) == model.config.num_layers + 1
    assert torch.equal(states[0], words)
    assert all(torch.equal(a, b) for a, b in zip(states, by_config, strict=True))


def test_other_embeddings_and_another_head_are_taken_where_they_are_set(folder):
    """As from `inputs_embeds`, and as the new head makes them of the last hidden states."""
    model, tokenizer = parts(folder)
    batch = dict(tokenizer(TEXTS[:1], return_tensors="pt"))
    before = logits(model, batch)
    words, size = model.get_input_embeddings().weight.shape
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(words, size), torch.nn.Linear(size, words, bias=False)
    plain, _ = parts(folder)
    model.set_input_embeddings(embedding)
    assert model.get_input_embeddings() is embedding
    assert [module for module in model.modules() if isinstance(module, torch.nn.Embedding)] == [embedding]
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    if "position_ids" not in rest:
        rest["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
    with torch.no_grad():
        expected = plain(inputs_embeds=embedding(batch["input_ids"]), **rest).logits[0]
    torch.testing.assert_close(logits(model, batch), expected)
    assert not torch.allclose(expected, before)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head
    with torch.no_grad():
        hidden = model.transformer(**batch).last_hidden_state[0]
        torch.testing.assert_close(logits(model, batch), head(hidden))


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM])
def test_every_auto_class_of_the_official_auto_map_gives_the_model_with_its_head(kind, folder):
    assert type(kind.from_pretrained(folder)).__name__.endswith("ForConditionalGeneration")


def test_frozen_weights_can_hand_gradients_to_the_inputs(folder):
    """What peft asks for before gradient checkpointing of a frozen model."""
    model, tokenizer = parts(folder)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(**tokenizer(TEXTS[:1], return_tensors="pt")).logits.requires_grad


def test_device_map_auto(folder):
    model, tokenizer = parts(folder, device_map="auto")
    plain, _ = parts(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt").to(model.device)
    torch.testing.assert_close(logits(model, batch), logits(plain.to(model.device), batch))
    assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}


@pytest.mark.slow
def test_torch_compile(folder):
    """The graph is captured and differentiated; no compiler is needed for that."""
    model, tokenizer = parts(folder)
    batch = dict(tokenizer(TEXTS[:1], return_tensors="pt"))
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, batch), logits(model, batch), atol=1e-5, rtol=1e-5)
    gradients = []
    for each in (model, compiled):
        model.zero_grad()
        each(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_sampling_is_repeatable(folder):
    model, tokenizer = parts(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        answers.append(model.generate(**batch, max_new_tokens=5, do_sample=True, top_p=0.9).tolist())
    assert answers[0] == answers[1]


def test_streamed_text_is_the_text_and_never_half_a_character(folder):
    _, tokenizer = parts(folder)
    text = "云川 word 𠮷野家😀、ok。\n尾"  # characters of several bytes that are no pieces
    streamer = TextIteratorStreamer(tokenizer)
    ids = tokenizer.encode_text(text)
    assert len(ids) > len(text)
    for i in ids:
        streamer.put(torch.tensor([i]))
    streamer.end()
    chunks = list(streamer)
    assert "".join(chunks) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(chunks)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention is compiled, and no g++ is here")
@pytest.mark.parametrize("prefix", [None, 3])
def test_flex_attention_agrees(folder, prefix):
    from transformers import AutoConfig

    results = []
    for backend in ("sdpa", "flex_attention"):
        config = AutoConfig.from_pretrained(folder)
        config.pre_seq_len = prefix
        torch.manual_seed(0)
        model, tokenizer = parts(folder, config=config, attn_implementation=backend)
        if prefix:
            torch.manual_seed(0)
            model.transformer.prefix_encoder.embedding.reset_parameters()
        results.append(logits(model, tokenizer(TEXTS, padding=True, return_tensors="pt")))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_no_loss_is_asked_of_is_left_out_of_the_last_layer_and_changes_no_gradient(folder, checkpointing):
    """With the positions given, the last layer computes behind its attention what the loss needs alone."""
    model, tokenizer = parts(folder)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    rows = []
    last = [m for m in model.modules() if type(m).__name__ == "MLP"][-1]
    last.register_forward_hook(lambda module, given, out: rows.append(out.numel() // out.shape[-1]))
    found = []
    for positions in (None, positions_with_target(labels)):
        model.zero_grad()
        loss = model(**batch, labels=labels, loss_positions=positions).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert set(rows) == {labels.numel(), 4}
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        assert (found[1][1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name


def test_no_position_that_a_loss_is_asked_of_gives_gradients_of_zero(folder):
    """As on a rank that has no record left."""
    model, tokenizer = parts(folder)
    ids = tokenizer(TEXTS[:1], return_tensors="pt")["input_ids"]
    none = torch.zeros(0, dtype=torch.long)
    batch = {"labels": torch.full_like(ids, -100), "loss_positions": none, "num_items_in_batch": 1}
    model.train()(input_ids=ids, **batch, return_logits=False).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
