import pytest
from encoding import encoded

from glmft.data.encode import Lengths, encode_prompt
from glmft.data.formats import Record, single
from glmft.data.templates import answer_ids, answer_text, cue_length, prompt_ids
from glmft.errors import DataError
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer
from glmft.tokenizers.chatglm3 import ChatGLM3Tokenizer

TEXTS = ["找出关系：云川坐落在岭溪境内。", "第一行\n第二行", "[gMASK] sop </s> <|user|>", " 前后有空格 "]


@pytest.fixture(params=[ChatGLM2Tokenizer, ChatGLM3Tokenizer], ids=["glm2", "glm3"])
def family_tokenizer(request, tokenizer):
    return request.param(vocab_file=tokenizer.vocab_file)


def records(*pairs: tuple[str, str]) -> list[Record]:
    return [single(query, answer, f"here:{i}") for i, (query, answer) in enumerate(pairs)]


@pytest.mark.parametrize("text", TEXTS)
def test_the_glm2_prompt_is_the_official_prompt_text_behind_two_special_ids(text, tokenizer):
    text_ids = tokenizer.encode(tokenizer.build_prompt(text), add_special_tokens=False)
    assert prompt_ids(tokenizer, text) == [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop"), *text_ids]


@pytest.mark.parametrize("text", TEXTS)
def test_what_the_model_sees_when_predicting_begins_the_row_it_was_trained_on(text, family_tokenizer):
    [example], _ = encoded(records((text, "云川_位于_岭溪")), family_tokenizer, Lengths(512, 256))
    prompt, cut = encode_prompt(family_tokenizer, text, 256)
    assert not cut
    assert example.ids[: example.spans[0][0]] == prompt


@pytest.mark.parametrize("text", TEXTS)
def test_special_looking_text_never_becomes_a_special_token(text, family_tokenizer):
    special = set(family_tokenizer.special_ids.values()) | {family_tokenizer.eos_token_id}
    framing = sum(i in special for i in prompt_ids(family_tokenizer, "问"))
    assert sum(i in special for i in prompt_ids(family_tokenizer, text)) == framing
    assert not special & set(answer_ids(family_tokenizer, text))


def test_labels_cover_the_answer_and_the_end_token(family_tokenizer):
    [example], report = encoded(records(("问", "云川")), family_tokenizer, Lengths(512, 256))
    target = example.ids[example.spans[0][0] :]
    assert target == [*answer_ids(family_tokenizer, "云川"), family_tokenizer.eos_token_id]
    assert report.supervised == len(target)
    assert answer_text(family_tokenizer, target) == "云川"


def test_an_empty_answer_teaches_the_end_token_and_is_counted(tokenizer):
    [example], report = encoded(records(("问", "")), tokenizer, Lengths(512, 256))
    assert example.ids[example.spans[0][0] :] == [tokenizer.eos_token_id]
    assert report.empty_answers == 1
    assert "1 answers empty" in report.lines()[0]


def test_a_cut_prompt_keeps_its_start_and_the_cue_of_the_answer(family_tokenizer):
    whole = prompt_ids(family_tokenizer, "云川岭溪泉峰湖岛" * 20)
    cue = cue_length(family_tokenizer, whole)
    prompt, cut = encode_prompt(family_tokenizer, "云川岭溪泉峰湖岛" * 20, 40)
    assert cut
    assert len(prompt) == 40
    assert prompt[:-cue] == whole[: 40 - cue]
    assert prompt[-cue:] == whole[-cue:]
    assert prompt[-cue:] == prompt_ids(family_tokenizer, "问")[-cue:]


def test_a_cut_answer_still_ends_with_the_end_token(tokenizer):
    [example], report = encoded(records(("问", "云川岭溪" * 50)), tokenizer, Lengths(64, 32))
    assert len(example.ids) == 64
    assert example.ids[-1] == tokenizer.eos_token_id
    assert (report.cut_answer, report.cut_prompt, report.kept) == (1, 0, 1)


def test_is_skip_drops_what_would_be_cut_and_counts_it(tokenizer):
    given = records(("问", "短"), ("问", "云川岭溪" * 50), ("云川岭溪" * 50, "短"))
    examples, report = encoded(given, tokenizer, Lengths(64, 32, is_skip=True))
    assert [example.place for example in examples] == ["here:0"]
    assert (report.read, report.kept, report.dropped) == (3, 1, 2)


def test_nothing_left_to_train_on_is_an_error(tokenizer):
    with pytest.raises(DataError, match="nothing is left of 1 records: 1 are longer"):
        encoded(records(("问", "云川岭溪" * 50)), tokenizer, Lengths(64, 32, is_skip=True))
