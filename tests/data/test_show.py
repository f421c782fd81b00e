import pytest
from encoding import encoded

from glmft.data.encode import Lengths
from glmft.data.formats import single
from glmft.data.show import token_table
from glmft.tokenizers.loading import load_tokenizer


def test_every_token_with_its_piece_id_and_label(official_folders):
    tokenizer = load_tokenizer(official_folders["glm3"])
    [example], _ = encoded([single("云", "川", "data.json:3")], tokenizer, Lengths(64, 32))
    lines = token_table(example, tokenizer).splitlines()
    gmask, user = tokenizer.get_command("[gMASK]"), tokenizer.get_command("<|user|>")
    assert lines[0] == f"data.json:3: {len(example.ids)} tokens, {example.supervised} with a label"
    assert lines[1] == f"'[gMASK]': {gmask} -> -100"
    assert lines[3] == f"'<|user|>': {user} -> -100"
    assert lines[-1] == f"'</s>': {tokenizer.eos_token_id} -> {tokenizer.eos_token_id}"
    assert len(lines) == 1 + len(example.ids)
    colored = token_table(example, tokenizer, color=True).splitlines()
    assert [line.startswith("\033[32m") for line in colored[1:]] == [
        any(first <= i < end for first, end in example.spans) for i in range(len(example.ids))
    ]


@pytest.mark.parametrize("family", ["glm4", "native-glm4"])
def test_pieces_of_bytes_are_shown_as_text(family, all_folders):
    tokenizer = load_tokenizer(all_folders[family])
    [example], _ = encoded([single("云", "川")], tokenizer, Lengths(64, 32))
    assert f"'川': {tokenizer.encode_text('川')[0]} -> " in token_table(example, tokenizer)
