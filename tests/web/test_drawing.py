"""Pieces of HTML hold no text of others as it came."""

import pytest

from glmft.data.show import TokenRow
from glmft.web import drawing
from glmft.web.words import speaker

EVIL = '<script>alert("x")</script>&'
SAY = speaker("en")


def test_texts_are_escaped_wherever_they_stand():
    token = TokenRow(EVIL, 1, 1, True)
    pieces = [
        drawing.note(EVIL),
        drawing.report([EVIL]),
        drawing.flow([token]),
        drawing.token_table([token], SAY),
        drawing.record(EVIL, [token], 3, SAY),
        drawing.pairs({EVIL: EVIL}, (EVIL, EVIL)),
        drawing.tiles({EVIL: EVIL}),
        drawing.answered({EVIL: EVIL}, SAY),
        drawing.preformatted(EVIL),
        drawing.plain(EVIL),
    ]
    for piece in pieces:
        assert "&lt;script&gt;" in piece
        assert "<script" not in piece
        assert '("x")' not in piece


def test_a_record_says_what_is_learned_and_how_much_is_not_shown():
    tokens = [TokenRow("[gMASK]", 1, -100, True), TokenRow("云", 2, 2, False)]
    piece = drawing.record("file.json:1", tokens, 7, SAY)
    assert "9 tokens, 1 with a label" in piece
    assert "7 more tokens" in piece
    assert piece.count('class="g-token g-learned"') == 2  # that of the token, that of the legend


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <b> & c", "a &lt;b&gt; &amp; c"),
        ("`<b>` and\n```\n<i>&\n``` <u>", "`<b>` and\n```\n<i>&\n``` &lt;u&gt;"),
        ("![x](http://elsewhere/x.png)", "!\\[x](http://elsewhere/x.png)"),
        ("&lt;", "&amp;lt;"),
        ("**bold** 甲_是_乙 __x__", "**bold** 甲\\_是\\_乙 \\_\\_x\\_\\_"),
        ("$$a_1$$ `a_1`", "$$a_1$$ `a_1`"),
        ("``` <never closed", "``` <never closed"),
    ],
)
def test_markdown_stays_and_html_is_shown_as_it_was_written(text, shown):
    assert drawing.as_markdown(text) == shown
    assert drawing.from_markdown(shown) == text
