"""Make a checkpoint of the exact official layout, at any size, with random weights.

To try loading, memory or throughput of ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B without their weights: names, shards,
config.json with its auto_map, tokenizer files, all as the official folders have them.

    python -m examples.official_layout --family glm2 --output_dir /tmp/chatglm2-tiny
    python -m examples.official_layout --family glm --output_dir /tmp/chatglm-6b --full_size
"""

import argparse
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from glmft.models.loading import load_config, meta_model

NAMES = {"glm": "THUDM/chatglm-6b", "glm2": "THUDM/chatglm2-6b", "glm3": "THUDM/chatglm3-6b"}
VOCABULARY_FILES = {"glm": "ice_text.model", "glm2": "tokenizer.model", "glm3": "tokenizer.model"}
_MODELING = "modeling_chatglm.ChatGLMForConditionalGeneration"
_COMMON = {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "torch_dtype": "float16", "use_cache": True}
_CHATGLM2 = {
    **_COMMON,
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": _MODELING,
        "AutoModelForCausalLM": _MODELING,
        "AutoModelForSeq2SeqLM": _MODELING,
        "AutoModelForSequenceClassification": "modeling_chatglm.ChatGLMForSequenceClassification",
    },
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "glm": {
        **_COMMON,
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": _MODELING,
            "AutoModelForSeq2SeqLM": _MODELING,
        },
        "bos_token_id": 130004,
        "eos_token_id": 130005,
        "mask_token_id": 130000,
        "gmask_token_id": 130001,
        "pad_token_id": 3,
        "hidden_size": 4096,
        "inner_hidden_size": 16384,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048,
        "num_attention_heads": 32,
        "num_layers": 28,
        "position_encoding_2d": True,
        "vocab_size": 130528,
        "transformers_version": "4.23.1",
    },
    "glm2": {**_CHATGLM2, "seq_length": 32768, "transformers_version": "4.27.1"},
    "glm3": {**_CHATGLM2, "seq_length": 8192, "transformers_version": "4.30.2"},
}
SMALL = {
    "glm": {"hidden_size": 64, "inner_hidden_size": 160, "num_attention_heads": 4, "num_layers": 3},
    "glm2": {
        "hidden_size": 48,
        "num_layers": 3,
        "num_attention_heads": 4,
        "kv_channels": 16,
        "ffn_hidden_size": 40,
    },
}
SMALL["glm3"] = SMALL["glm2"]


def sentencepiece_model(family: str, sentences: Iterable[str], characters: str, merges: int = 40) -> bytes:
    """A sentencepiece model with the special pieces and normalisation of the family's official one.

    Args:
        sentences: what longer pieces are learned from.
        characters: characters that get a piece of their own.
        merges: pieces of several characters.
    """
    model, sentences = io.BytesIO(), list(sentences)
    alphabet = len(set(characters) | set("".join(sentences)) - {" "}) + 1
    shared: dict[str, Any] = {
        "sentence_iterator": iter(sentences),
        "model_writer": model,
        "required_chars": characters,
        "byte_fallback": True,
        "split_digits": True,
        "character_coverage": 1.0,
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    if family == "glm":
        blanks = [f"<|blank_{i}|>" for i in range(2, 81)]
        control = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
        special = {"pad_id": 3, "user_defined_symbols": ["<n>", "<|tab|>", *blanks], "control_symbols": control}
        size = 4 + 256 + alphabet + merges + len(control) + len(blanks) + 2
        options = {"model_type": "unigram", "hard_vocab_limit": False, **special}
    else:
        size = 3 + 256 + alphabet + merges
        options = {"model_type": "bpe", "normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(vocab_size=size, **shared, **options)
    return model.getvalue()


def tokenizer_config(family: str) -> dict[str, Any]:
    """The official tokenizer_config.json of a family."""
    of_glm = {
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "num_image_tokens": 0,
    }
    return {
        "name_or_path": NAMES[family],
        **(of_glm if family == "glm" else {}),
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }


def write_tokenizer(folder: Path, family: str, vocabulary: bytes) -> dict[str, int]:
    """Write the tokenizer files; returns the keys of config.json that hang on the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCABULARY_FILES[family]).write_bytes(vocabulary)
    write_json(folder / "tokenizer_config.json", tokenizer_config(family))
    sp = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    size = "vocab_size" if family == "glm" else "padded_vocab_size"
    official, needed = CONFIGS[family][size], -(-(sp.vocab_size() + 64) // 64) * 64
    keys = {size: official if 0.9 * official < needed <= official else needed}
    if family == "glm":
        ids = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]", "pad": "<pad>"}
        keys |= {f"{name}_token_id": sp.piece_to_id(piece) for name, piece in ids.items()}
    return keys


def write_weights(
    folder: Path, state: dict[str, Tensor], max_shard_size: str = "2GB", safetensors: bool = False
) -> None:
    """Write shards and their index under the official file names."""
    pattern = "model{suffix}.safetensors" if safetensors else "pytorch_model{suffix}.bin"
    # The official index names a tied matrix twice; sharding would keep one of the names.
    split = split_torch_state_dict_into_shards(
        {name: tensor.clone() if name == "lm_head.weight" else tensor for name, tensor in state.items()},
        filename_pattern=pattern,
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: state[name].contiguous() for name in names}
        if safetensors:
            save_file({name: t.clone() for name, t in tensors.items()}, folder / file, {"format": "pt"})
        else:
            torch.save(tensors, folder / file)
    if split.is_sharded:
        index = {"metadata": {"total_size": split.metadata["total_size"]}, "weight_map": split.tensor_to_filename}
        write_json(folder / (pattern.format(suffix="") + ".index.json"), index)


def random_state(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Random weights for a model on the meta device, under its names; tied names share them."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        is_norm = "layernorm" in name and name.endswith("weight")
        values = 0.1 * torch.randn(tensor.shape, generator=generator)
        state[name] = (values + 1 if is_norm else values).to(dtype)
    if "lm_head.weight" in state:
        state["lm_head.weight"] = state["transformer.word_embeddings.weight"]
    return state


def make_checkpoint(
    folder: Path,
    family: str,
    vocabulary: bytes,
    shape: dict[str, Any] | None = None,
    max_shard_size: str = "2GB",
    safetensors: bool = False,
    seed: int = 0,
) -> Path:
    """Write a whole folder in the official layout and return it.

    Args:
        vocabulary: a sentencepiece model; vocabulary size and special ids follow from it.
        shape: keys of config.json to replace; the size of the 6B model otherwise.
    """
    of_vocabulary = write_tokenizer(folder, family, vocabulary)
    config = {"_name_or_path": NAMES[family], **CONFIGS[family], **of_vocabulary, **(shape or {})}
    write_json(folder / "config.json", config)
    write_weights(folder, random_state(meta_model(load_config(folder)), seed), max_shard_size, safetensors)
    return folder


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(CONFIGS), required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--tokenizer_model", type=Path, help="a sentencepiece model; none: a small one is trained")
    parser.add_argument("--full_size", action="store_true", help="the size of the 6B model")
    parser.add_argument("--num_layers", type=int)
    parser.add_argument("--max_shard_size", default="2GB")
    parser.add_argument("--safetensors", action="store_true", help="in place of .bin files")
    args = parser.parse_args()
    if args.output_dir.exists():
        parser.error(f"{args.output_dir} exists already; name a new folder")
    from examples.quickstart.make_base import corpus, world_characters

    vocabulary = (
        args.tokenizer_model.read_bytes()
        if args.tokenizer_model
        else sentencepiece_model(args.family, corpus(), world_characters())
    )
    shape = {} if args.full_size else dict(SMALL[args.family])
    if args.num_layers:
        shape["num_layers"] = args.num_layers
    folder = make_checkpoint(args.output_dir, args.family, vocabulary, shape, args.max_shard_size, args.safetensors)
    print(f"{args.family} checkpoint in {folder}")


if __name__ == "__main__":
    main()
