"""The texts of the page."""

import re

import pytest

from glmft.web.words import WORDS, preferred, speaker


def test_every_text_is_there_in_both_languages_with_the_same_gaps():
    for name, (english, chinese) in WORDS.items():
        assert english, name
        assert chinese, name
        assert english.count("{}") == chinese.count("{}"), name
        assert not re.search("[\u4e00-\u9fff]", english), name


def test_the_speaker_of_a_language_has_its_texts():
    assert (speaker("en")("chat"), speaker("zh")("chat")) == ("Chat", "对话")


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("de,fr;q=0.8,zh;q=0.3", "zh"),
        ("en;q=0.1, zh-TW;q=0.7", "zh"),
        ("zh;q=0, en", "en"),
        ("de", "en"),
        ("", "en"),
        (";q=;;,,zh;q=x", "en"),
    ],
)
def test_the_language_is_the_one_that_the_browser_asks_for_first(header, language):
    assert preferred(header) == language
