"""Make a checkpoint of the exact official layout, at any size, with random weights.

To try loading, memory or throughput of ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B without their weights: names,
shards, config.json with its auto_map, tokenizer files, all as the official folders have them.

    python -m examples.official_layout --family glm2 --output_dir /tmp/chatglm2-tiny
    python -m examples.official_layout --family glm --output_dir /tmp/chatglm-6b --full_size
"""

import argparse
import base64
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
from glmft.tokenizers.chatglm4 import ChatGLM4Tokenizer

NAMES = {
    "glm": "THUDM/chatglm-6b",
    "glm2": "THUDM/chatglm2-6b",
    "glm3": "THUDM/chatglm3-6b",
    "glm4": "THUDM/glm-4-9b-chat",
}
VOCABULARY_FILES = dict.fromkeys(NAMES, "tokenizer.model") | {"glm": "ice_text.model"}
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
    "glm4": {
        **_CHATGLM2,
        "torch_dtype": "bfloat16",
        "attn_implementation": "sdpa",
        "layernorm_epsilon": 1.5625e-07,
        "num_hidden_layers": 40,
        "num_layers": 40,
        "rope_ratio": 500,
        "padded_vocab_size": 151552,
        "seq_length": 131072,
        "transformers_version": "4.42.4",
        "eos_token_id": [151329, 151336, 151338],
        "pad_token_id": 151329,
    },
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
SMALL["glm4"] = {**SMALL["glm2"], "num_hidden_layers": 3}


def vocabulary_of(family: str, sentences: Iterable[str], characters: str) -> bytes:
    """A small vocabulary file in the family's official form."""
    if family == "glm4":
        return tiktoken_ranks("".join(sorted({c for sentence in sentences for c in sentence} | set(characters))))
    return sentencepiece_model(family, sentences, characters)


def tiktoken_ranks(characters: str) -> bytes:
    """All bytes, then what each character of several bytes is merged from, its last merge being the character."""
    tokens = [bytes([i]) for i in range(256)]
    merged = (char.encode()[:length] for char in characters for length in range(2, len(char.encode()) + 1))
    tokens += dict.fromkeys(merged)
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    return b"".join(lines)


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


def tokenizer_config(family: str, behind: int) -> dict[str, Any]:
    """The official tokenizer_config.json of a family, GLM-4's without its chat template.

    Args:
        behind: the first id behind the vocabulary.
    """
    if family == "glm4":
        return _of_glm4(behind)
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


def _of_glm4(behind: int) -> dict[str, Any]:
    kind, names = "ChatGLM4Tokenizer", ChatGLM4Tokenizer.special_tokens
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "auto_map": {"AutoTokenizer": [f"tokenization_chatglm.{kind}", None]},
        "added_tokens_decoder": {str(behind + i): {"content": name, **flags} for i, name in enumerate(names)},
        "additional_special_tokens": list(names),
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 128000,
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": kind,
    }


def write_tokenizer(folder: Path, family: str, vocabulary: bytes) -> dict[str, Any]:
    """Write the tokenizer files; returns the keys of config.json that hang on the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCABULARY_FILES[family]).write_bytes(vocabulary)
    sp = None if family == "glm4" else sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    behind = vocabulary.count(b"\n") if sp is None else sp.vocab_size()
    write_json(folder / "tokenizer_config.json", tokenizer_config(family, behind))
    size = "vocab_size" if family == "glm" else "padded_vocab_size"
    official, needed = CONFIGS[family][size], -(-(behind + 64) // 64) * 64
    keys: dict[str, Any] = {size: official if 0.9 * official < needed <= official else needed}
    if family == "glm":
        ids = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]", "pad": "<pad>"}
        keys |= {f"{name}_token_id": sp.piece_to_id(piece) for name, piece in ids.items()}
    if family == "glm4":  # <|endoftext|>, <|user|>, <|observation|>
        keys |= {"eos_token_id": [behind, behind + 7, behind + 9], "pad_token_id": behind}
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
        if tensor.dtype == torch.int8:
            state[name] = torch.randint(-127, 128, tensor.shape, dtype=torch.int8, generator=generator)
            continue
        values = 0.1 * torch.randn(tensor.shape, generator=generator)
        if name.endswith("weight_scale"):
            values = values.abs() / 2 ** (model.config.quantization_bit - 1)
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
        vocabulary: a sentencepiece model, or for `glm4` tiktoken's ranks; its size and special ids follow from it.
        shape: keys of config.json to replace; the size of the official model otherwise.
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
    parser.add_argument("--tokenizer_model", type=Path, help="a vocabulary file; none: a small one is made")
    parser.add_argument("--full_size", action="store_true", help="the size of the official model")
    parser.add_argument("--num_layers", type=int)
    parser.add_argument("--quantization_bit", type=int, choices=(4, 8), help="as the official INT4 and INT8 folders")
    parser.add_argument("--max_shard_size", default="2GB")
    parser.add_argument("--safetensors", action="store_true", help="in place of .bin files")
    args = parser.parse_args()
    if args.output_dir.exists():
        parser.error(f"{args.output_dir} exists already; name a new folder")
    from examples.quickstart.make_base import CHARACTERS, corpus

    vocabulary = (
        args.tokenizer_model.read_bytes() if args.tokenizer_model else vocabulary_of(args.family, corpus(), CHARACTERS)
    )
    shape = {} if args.full_size else dict(SMALL[args.family])
    if args.num_layers:
        shape["num_layers"] = args.num_layers
    if args.quantization_bit:
        shape["quantization_bit"] = args.quantization_bit
    folder = make_checkpoint(args.output_dir, args.family, vocabulary, shape, args.max_shard_size, args.safetensors)
    print(f"{args.family} checkpoint in {folder}")


if __name__ == "__main__":
    main()
