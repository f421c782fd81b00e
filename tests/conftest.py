"""What the tests share: a tokenizer made on the spot, tiny random models, and data that lies outside the project."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="glmft-test-cache-")

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {
    "padded_vocab_size": 97,
    "hidden_size": 48,
    "num_layers": 3,
    "num_attention_heads": 4,
    "kv_channels": 16,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 40,
    "seq_length": 64,
    "glmft_family": "glm2",
}


@pytest.fixture(scope="session")
def shared() -> Path:
    """Goldens of the official implementations and real data, which are no part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "goldens").is_dir():
        pytest.skip(f"{folder}/goldens is not here: the official implementations' goldens lie outside the project")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The quickstart's ChatGLM2 tokenizer, with a sentencepiece model trained on the spot."""
    from examples.quickstart.make_base import make_tokenizer

    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def vocabularies() -> dict[str, bytes]:
    """A vocabulary file in the official form for each family, made on the spot."""
    from examples.official_layout import CONFIGS, vocabulary_of
    from examples.quickstart.make_base import CHARACTERS, corpus

    return {family: vocabulary_of(family, corpus(), CHARACTERS) for family in CONFIGS}


@pytest.fixture(scope="session")
def official_folders(vocabularies, tmp_path_factory) -> dict[str, Path]:
    """A small checkpoint in the official layout for each family: sharded .bin files of float16. Not to be changed."""
    from examples.official_layout import SMALL, make_checkpoint

    root = tmp_path_factory.mktemp("official")
    return {f: make_checkpoint(root / f, f, v, SMALL[f], max_shard_size="150KB") for f, v in vocabularies.items()}


@pytest.fixture(scope="session")
def native_folders(official_folders, tmp_path_factory) -> dict[str, Path]:
    """A small random model of each type in transformers' own layout, by that type. Not to be changed."""
    from native import make_native

    root = tmp_path_factory.mktemp("native")
    return {f"native-{kind}": make_native(root / kind, kind, official_folders["glm4"]) for kind in ("glm", "glm4")}


@pytest.fixture(scope="session")
def all_folders(official_folders, native_folders) -> dict[str, Path]:
    """Both."""
    return official_folders | native_folders


@pytest.fixture(scope="session")
def glm_tokenizer(official_folders):
    from glmft.tokenizers.loading import load_tokenizer

    return load_tokenizer(official_folders["glm"])


@pytest.fixture
def tiny_config():
    """Makes a small ChatGLM2 configuration; keyword arguments replace parts of it."""
    from glmft.models.configuration import ChatGLM2Config

    return lambda **changes: ChatGLM2Config(**{**SHAPE, **changes})


@pytest.fixture
def tiny_model(tiny_config):
    """Makes a small random ChatGLM2 in float32, always the same; keyword arguments change its configuration."""
    import torch

    from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration

    def make(attn_implementation: str = "sdpa", **changes):
        torch.manual_seed(0)
        config = tiny_config(**changes)
        model = ChatGLM2ForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.2)
        return model.eval()

    return make


@pytest.fixture
def model_folder(tiny_model, tokenizer, tmp_path) -> Path:
    """A saved tiny model with its tokenizer."""
    folder = tmp_path / "base"
    tiny_model(padded_vocab_size=-(-tokenizer.vocab_size // 64) * 64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def same_gradients_checkpointed():
    """Asserts that a model, its dropout off, has the same gradients with gradient checkpointing of all layers, and of
    every second; and that the less is kept, the more layers it is of.
    """
    import copy

    import torch

    from glmft.models.checkpointing import checkpoint_layers

    def check(plain, rows, **tolerance) -> None:
        models = {every: copy.deepcopy(plain) for every in (0, 2, 1)}
        kept = dict.fromkeys(models, 0)
        for every, model in models.items():
            checkpoint_layers(model.train(), every)
            if hasattr(model.base_model, "dropout"):
                model.base_model.dropout.p = 0.0

            def count(tensor, every=every):
                kept[every] += tensor.nbytes
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = model(rows, labels=rows).loss
            loss.backward()
        assert kept[0] > kept[2] > kept[1] > 0
        for every in (2, 1):
            for (name, a), b in zip(models[0].named_parameters(), models[every].parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, msg=f"{name}, every {every}", **tolerance)

    return check
