"""What the JSON files of a tokenizer's folder may say, checked before transformers reads them."""

from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, one_line
from glmft.reading import is_file, read_json_if_there, read_text
from glmft.schema import FLAG, NULL, Kind, list_of, number, one_of, problems, table_of, text, whole

LARGEST_VOCABULARY = 64 << 20  # bytes
_FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), FLAG)


def _is_added_token(value: Any) -> bool:
    kinds = {**_FLAGS, "content": text(longest=1000), "__type": text(longest=100), "id": whole(0, 1 << 24)}
    return (
        isinstance(value, dict)
        and "content" in value
        and value.keys() <= kinds.keys()
        and not problems(value, kinds, "")
    )


_ADDED = Kind("an object with content and flags", _is_added_token)
_TOKEN = text(longest=1000) | _ADDED
_TOKENS = list_of(_TOKEN, 2000)
NAMED = {
    f"{name}_token": _TOKEN | NULL for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "gmask", "end", "sop")
}
CONFIG: dict[str, Kind] = {
    **NAMED,
    "additional_special_tokens": _TOKENS | NULL,
    "extra_special_tokens": _TOKENS | table_of(_TOKEN) | NULL,
    "added_tokens_decoder": table_of(_ADDED) | NULL,
    "auto_map": table_of(text() | list_of(text() | NULL, 10), 100) | NULL,
    "chat_template": text(longest=1 << 20) | NULL,
    "clean_up_tokenization_spaces": FLAG | NULL,
    "do_lower_case": FLAG,
    "encode_special_tokens": FLAG,
    "glmft_family": text(longest=20),
    "image_size": whole() | NULL,
    "model_max_length": number(1, 1e31) | NULL,
    "model_input_names": list_of(text(longest=100), 100),
    "name_or_path": text() | NULL,
    "num_image_tokens": whole(0, 1 << 20),
    "padding_side": one_of("left", "right"),
    "truncation_side": one_of("left", "right"),
    "processor_class": text() | NULL,
    "remove_space": FLAG,
    "split_special_tokens": FLAG,
    "tokenizer_class": text() | NULL,
    "transformers_version": text(longest=100) | NULL,
    "use_fast": FLAG,
}


def check_tokenizer_files(folder: Path, kind: type) -> None:
    """Raises ConfigError for what is no JSON, of a wrong type, or would take the place of something of the class.

    Args:
        kind: the tokenizer's class.
    """
    path = folder / "tokenizer_config.json"
    given = read_json_if_there(path)
    wrong = problems(given, CONFIG, path)
    wrong += [
        f"{path}: {one_line(key, 60)} is no setting of a tokenizer; take it out"
        for key in given
        if key not in CONFIG and (key.endswith(("_file", "_files")) or hasattr(kind, key) or not key.isidentifier())
    ]
    path = folder / "special_tokens_map.json"
    wrong += problems({**read_json_if_there(path)}, {**NAMED, "additional_special_tokens": _TOKENS}, path)
    path = folder / "added_tokens.json"
    added = read_json_if_there(path)
    wrong += problems(added, dict.fromkeys(added, whole(0, 1 << 24)), path)
    path = folder / "tokenizer.json"
    listed = read_json_if_there(path)
    if listed and not list_of(_ADDED).passes(listed.get("added_tokens")):
        wrong.append(f"{path}: added_tokens is no list of objects with content and flags; copy it again")
    if wrong:
        raise ConfigError(wrong)
    for template in folder.glob("chat_template*.jinja"):
        read_text(template, 1 << 20)


def check_vocabulary(path: Path) -> None:
    """Raises ConfigError if there is no such file, or none that can be a vocabulary."""
    if not is_file(path):
        raise ConfigError(f"{path}: the vocabulary is missing; copy it from the official folder")
    if path.stat().st_size > LARGEST_VOCABULARY:
        raise ConfigError(f"{path}: is larger than {LARGEST_VOCABULARY:,} bytes, too much for a vocabulary")
