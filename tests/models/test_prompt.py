"""Prompts at the embedding: the same as their embeddings written in front of the text's."""

import pytest
import torch
from peft import PromptEncoderConfig
from peft.tuners.p_tuning import PromptEncoder as PeftPromptEncoder

from glmft.family import FAMILIES
from glmft.models.loading import load_config, load_model
from glmft.models.positions import two_dimensional_positions
from glmft.models.prompt import PromptEncoder
from glmft.tokenizers.loading import load_tokenizer

P = 3


@pytest.fixture(params=[*FAMILIES, "native-glm", "native-glm4"])
def family(request):
    return request.param


@pytest.fixture
def folder(family, all_folders):
    return all_folders[family]


def make(folder, backend="sdpa", encoder="none"):
    model = load_model(load_config(folder), folder, torch.float32, backend).eval()
    config = model.config
    config.prompt_seq_len, config.prompt_encoder, config.prompt_hidden_size = P, encoder, 20
    torch.manual_seed(0)
    model.base_model.add_prompt_encoder()
    return model


def one_row(folder) -> torch.Tensor:
    tokenizer = load_tokenizer(folder)
    return torch.tensor([[*tokenizer.chat_ids([{"role": "user", "content": "云川岭溪泉"}]), 7, 8, 9]])


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_virtual_tokens_are_embeddings_in_front_of_the_text(backend, encoder, family, folder):
    model, ids = make(folder, backend, encoder), one_row(folder)
    plain = load_model(load_config(folder), folder, torch.float32, backend).eval()
    embeds = torch.cat((model.base_model.prompt_encoder()[None], model.get_input_embeddings()(ids)), dim=1)
    given = {}
    if family == "glm":  # the virtual tokens see one another only; the context is seen in both directions
        places, blocks = two_dimensional_positions(model.config, ids).unbind(1)
        zeros = torch.zeros(1, P, dtype=torch.long)
        places = torch.cat((torch.arange(P)[None], places + P), dim=1)
        blocks = torch.cat((zeros, blocks), dim=1)
        length, context = places.shape[1], int((blocks == 0).sum())
        query, key = torch.arange(length)[:, None], torch.arange(length)[None]
        visible = (key <= query) | ((key < context) & (query >= P)) | ((key < P) & (query < P))
        given = {"position_ids": torch.stack((places, blocks), 1), "attention_mask": ~visible[None, None]}
    expected = plain(inputs_embeds=embeds, **given).logits[:, P:]
    logits = model(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    parameters = list(model.base_model.prompt_encoder.parameters())
    ours = torch.autograd.grad(logits.pow(2).sum(), parameters)
    theirs = torch.autograd.grad(expected.pow(2).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-3)


def test_a_left_padded_batch_generates_what_each_row_generates_alone(folder):
    model, tokenizer = make(folder), load_tokenizer(folder)
    rows = [tokenizer.chat_ids([{"role": "user", "content": text}]) for text in ("云川岭溪泉", "松")]
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}):
        batch = tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
        together = model.generate(**batch, **settings, **options)[:, batch["input_ids"].shape[1] :]
        for i, row in enumerate(rows):
            single = tokenizer.pad({"input_ids": [row]}, return_tensors="pt")
            assert model.generate(**single, **settings, **options)[0, len(row) :].tolist() == together[i].tolist()


def test_gradient_checkpointing_changes_no_gradient(folder, same_gradients_checkpointed):
    same_gradients_checkpointed(make(folder), one_row(folder), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_encoders_are_those_of_p_tuning_as_peft_has_them(encoder):
    ours = PromptEncoder(P, 12, encoder, 20)
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        token_dim=12,
        num_transformer_submodules=1,
        encoder_hidden_size=20,
        encoder_reparameterization_type=encoder.upper(),
        encoder_dropout=0.0,
    )
    theirs = PeftPromptEncoder(config)
    state = {
        name.replace("lstm_head", "lstm").replace("mlp_head", "mlp"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(), theirs(torch.arange(P)[None])[0])
