"""Fast tokenizers of the official vocabularies, for programs that have none of our code, have the same ids."""

import random

import pytest

from glmft.tokenizers.loading import load_tokenizer
from glmft.tokenizers.to_fast import fast_tokenizer

OFFICIAL = {"glm2": "chatglm2-6b", "glm3": "chatglm3-6b", "glm4": "glm-4-9b-chat"}
ALPHABET = "ab AB  zé中文字体，。！？\n\t▁ 0123456789 'sll😀👍🏽ÄÖ\u200b\u3000\r\x00<0x0A>"


def texts(pages: list[str]) -> list[str]:
    """Lines of prose and code in two languages, random Unicode, white space, and long runs of one character."""
    drawn = random.Random(0)
    ranges = ((32, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0x1FFFF))
    characters = [chr(drawn.randint(*drawn.choice(ranges))) for _ in range(3000)]
    mixed = ["".join(drawn.choices(ALPHABET, k=drawn.randint(0, 40))) for _ in range(4000)]
    mixed += ["".join(drawn.sample(characters, drawn.randint(1, 30))) for _ in range(3000)]
    runs = [character * n for n in range(1, 60) for character in "a 哈=\n"]
    return [*(line for page in pages for line in page.splitlines()), *mixed, *runs]


@pytest.mark.slow
@pytest.mark.parametrize("family", OFFICIAL)
def test_the_fast_form_of_an_official_vocabulary_has_the_same_ids(family, shared, pytestconfig):
    pages = [path.read_text(encoding="utf-8") for path in sorted((pytestconfig.rootpath / "docs").glob("*.md"))]
    ours = load_tokenizer(shared / "official" / OFFICIAL[family], family)
    fast = fast_tokenizer(ours)
    compared = 0
    for text in texts(pages):
        if any(token in text for token in fast.get_added_vocab()):  # which a fast tokenizer reads in a text
            continue
        ids = ours.encode_text(text)
        assert fast(text, add_special_tokens=False)["input_ids"] == ids, repr(text)
        assert fast(text)["input_ids"] == [*ours.prefix_ids, *ids], repr(text)
        compared += 1
    assert compared > 7000
    rounds = [{"role": "user", "content": "你好 a"}, {"role": "assistant", "content": "hi\nthere"}]
    messages = [*rounds, {"role": "user", "content": " x\n y"}]
    assert fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ours.chat_ids(messages)
