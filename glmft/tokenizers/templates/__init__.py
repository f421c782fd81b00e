"""The families' chats as Jinja templates, for `apply_chat_template` and for programs that do not have our code.

Of each family there are two. `default` has the official form. `training` is what a row of the training data is: the
same with the end token, and what is learned between `{% generation %}` marks. `glmft.tokenizers.rendering` reads the
rendered text back to ids; in it a blank stands where the official form encodes two texts apart from one another, since
sentencepiece puts one before every text.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from glmft.tokenizers.chatglm4_tools import BUILT_IN, HOW_TO_CALL, INTRODUCTION

HERE = Path(__file__).parent
DEFAULT, TRAINING = "default", "training"
# What stands before both templates of a family.
COMMON = {"glm": ("words", "turns"), "glm2": ("words", "turns"), "glm3": ("words", "glm3"), "glm4": ("words", "glm4")}
# The templates in the official folders of ChatGLM3-6B (2024-01) and GLM-4-9B-chat: ours take their place, which give
# the same ids and know metadata, tools and contents in parts.
SUPERSEDED = {
    "d0a00b0c9200e3aa26d889cd5b9c89e6a3dbf4135a9dfc581c822364b57a45ee",
    "27288f957f8364c990a2ce13bf5f8bf86921c4bce467ce698c76dcc69466d821",
}


@cache
def shipped(family: str) -> dict[str, str]:
    """The text of a family's two templates, by their name; {} for a family that has none."""
    return {name: _text(family, name) for name in (DEFAULT, TRAINING)} if family in COMMON else {}


def is_superseded(template: str) -> bool:
    return hashlib.sha256(template.encode()).hexdigest() in SUPERSEDED


def _text(family: str, name: str) -> str:
    constants = {"family": family}
    if family == "glm4":
        constants |= {"introduction": INTRODUCTION, "how_to_call": HOW_TO_CALL, "built_in": BUILT_IN}
    texts = [f"{{%- set {key} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for key, value in constants.items()]
    files = [*COMMON[family], f"{family}.{name}"]
    return "".join(texts + [(HERE / f"{file}.jinja").read_text(encoding="utf-8") for file in files])
