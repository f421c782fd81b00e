"""Other libraries on our models, loaded as their users load them: by the Auto classes, from a folder."""

import pytest

from glmft.family import FAMILIES

CHATS = [
    [{"role": "user", "content": "云川"}, {"role": "assistant", "content": "岭溪"}],
    [
        {"role": "user", "content": "甲"},
        {"role": "assistant", "content": "云"},
        {"role": "user", "content": "川 岭"},
        {"role": "assistant", "content": "泉"},
    ],
] * 4


@pytest.fixture(params=FAMILIES)
def folder(request, official_folders):
    return str(official_folders[request.param])


@pytest.fixture
def tokenizer(folder):
    import transformers

    import glmft  # noqa: F401

    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(folder):
    import torch
    import transformers

    import glmft  # noqa: F401

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def chats():
    return CHATS
