"""GLM-4 in transformers' own layout, made on the spot: tiny random models, a fast tokenizer, chat templates."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken
from transformers.convert_slow_tokenizer import TikTokenConverter

from glmft.tokenizers.chatglm4 import PATTERN, ChatGLM4Tokenizer

# As the two generations' own templates differ: where tools come from, and what becomes of white space and system texts.
TEMPLATES = {
    "glm": (
        "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>\nTools:"
        "{% for tool in item['tools'] %}\n{{ tool['function'] | tojson(indent=4) }}{% endfor %}{% endif %}"
        "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "glm4": (
        "[gMASK]<sop>{% if tools %}<|system|>\nTools:{% for tool in tools %}\n{{ tool.function | tojson }}{% endfor %}"
        "{% endif %}{% for m in messages if m.role == 'system' %}<|system|>\n{{ m.content }}{% endfor %}"
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.metadata or '' }}\n"
        "{{ m.content.split('</think>')[-1].strip() }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}
SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 40,
    "max_position_embeddings": 4096,
}
CLASSES = {
    "glm": (transformers.GlmConfig, transformers.GlmForCausalLM),
    "glm4": (transformers.Glm4Config, transformers.Glm4ForCausalLM),
}


def make_tokenizer(folder: Path, vocabulary: Path, kind: str) -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer of a tiktoken vocabulary, saved by transformers."""
    names = ChatGLM4Tokenizer.special_tokens
    backend = TikTokenConverter(str(vocabulary), pattern=PATTERN).converted()
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=list(names),
        chat_template=TEMPLATES[kind],
        padding_side="left",
        **end,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_native(folder: Path, kind: str, remote: Path) -> Path:
    """A model folder in transformers' own layout, with the vocabulary of one in the remote-code layout."""
    official = json.loads((remote / "config.json").read_text(encoding="utf-8"))
    make_tokenizer(folder, remote / "tokenizer.model", kind)
    config, model = CLASSES[kind]
    torch.manual_seed(0)
    ends = {name: official[name] for name in ("eos_token_id", "pad_token_id")}
    made = model(config(vocab_size=official["padded_vocab_size"], **SHAPE, **ends))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.1)
    made.to(torch.bfloat16).save_pretrained(folder, max_shard_size="150KB")
    return folder
