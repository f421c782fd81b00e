"""Without a flag the data stays whole; what is lost is counted, and a line says what would keep it."""

import json

import pytest
from encoding import encoded

from glmft.data.dataset import load_rows
from glmft.data.encode import Lengths
from glmft.data.formats import Record, single
from glmft.data.shortfall import shortfalls
from glmft.data.templates import answer_ids, prompt_ids
from glmft.settings.config import TrainConfig
from glmft.settings.sources import find_sources
from glmft.tokenizers.loading import load_tokenizer

TOOL = {"name": "查部件", "description": "云川岭溪泉峰" * 12, "parameters": {"部件": {"type": "string"}}}


@pytest.fixture(params=["glm", "glm2", "glm3", "glm4", "native-glm"])
def any_tokenizer(request, all_folders):
    return load_tokenizer(all_folders[request.param])


@pytest.fixture
def glm3(official_folders):
    return load_tokenizer(official_folders["glm3"])


def tool_dialogue(i: int) -> dict:
    return {
        "tools": [TOOL, {**TOOL, "name": "查故障"}],
        "conversations": [
            {"role": "user", "content": f"云川的部件有何故障？{i}"},
            {"role": "tool", "name": "查部件", "parameters": {"部件": "云川"}, "observation": "异响" * 10},
            {"role": "assistant", "content": "云川有异响。" * (1 + i % 5)},
        ],
    }


def test_fifty_tool_dialogues_stay_whole(glm3, tmp_path):
    """About 448 tokens each, most of them in the tools' description: a prompt that `max_src_len` 256 would cut."""
    path = tmp_path / "tools.jsonl"
    path.write_text(
        "".join(json.dumps(tool_dialogue(i), ensure_ascii=False) + "\n" for i in range(50)), encoding="utf-8"
    )
    load = lambda **changes: load_rows(find_sources(str(path)), TrainConfig(**changes), glm3, 1, tmp_path)  # noqa: E731
    whole, unlimited, cut = load(), load(max_len=100_000, max_src_len=90_000), load(max_src_len=256)
    assert [example.ids for example in whole.examples] == [example.ids for example in unlimited.examples]
    assert [example.spans for example in whole.examples] == [example.spans for example in unlimited.examples]
    assert min(whole.lengths) > 400
    assert whole.shortfalls == []
    [lost] = cut.shortfalls
    assert lost.share == 1
    assert lost.line.startswith("warning: data: 50 of 50 rows are cut (50 prompts); --max_src_len ")
    mended = int(lost.line.split("--max_src_len ")[1].split()[0])
    assert load(max_src_len=mended).shortfalls == []
    assert load(max_src_len=mended - 1).shortfalls != []


@pytest.mark.parametrize(("question", "answer"), [(5, 300), (300, 5), (300, 300), (60, 35), (35, 60)])
@pytest.mark.parametrize("template", ["default", "raw", "reference"])
def test_the_answer_leaves_the_prompt_at_least_half_and_otherwise_what_it_does_not_need(
    question, answer, template, any_tokenizer
):
    if template == "reference" and any_tokenizer.family == "glm4":
        pytest.skip("the reference project knows no GLM-4")
    record = single("云" * question, "溪" * answer)
    whole = len(prompt_ids(any_tokenizer, record.question, template))
    target = len(answer_ids(any_tokenizer, record.messages[-1], template))
    unused = 3 if (any_tokenizer.family, template) == ("glm3", "reference") else 0
    [row], report = encoded([record], any_tokenizer, Lengths(100), template)
    prompt = max(100 - target - 1 - unused, 50)
    assert report.cut_prompt == (whole > prompt)
    assert report.cut_answer == (target > 100 - min(whole, prompt) - 1 - unused)
    assert len(row.ids) == min(100 - unused, whole + target + 1)
    assert row.ids[-1] == row.ids[row.spans[-1][1] - 1]


def reports(tokenizer, lengths, *sizes: tuple[int, int]):
    records = [single("云" * question, "溪" * answer) for question, answer in sizes]
    return [encoded(records, tokenizer, lengths)[1]]


def test_a_share_of_one_percent_is_no_warning(glm3):
    lengths = Lengths(60)
    assert shortfalls(reports(glm3, lengths, (70, 5), *[(5, 5)] * 99), lengths, 0) == []
    [lost] = shortfalls(reports(glm3, lengths, (70, 5), *[(5, 5)] * 98), lengths, 0)
    assert lost.line.startswith("warning: data: 1 of 99 rows are cut (1 prompts); --max_len ")
    assert lost.line.endswith(" holds them all (1.0%)")


@pytest.mark.parametrize(
    ("lengths", "sizes", "flags"),
    [
        (Lengths(60), [(70, 5)], {"max_len"}),
        (Lengths(60), [(5, 70)], {"max_len"}),
        (Lengths(200, 30), [(70, 5)], {"max_src_len"}),
        (Lengths(80, 30), [(70, 40)], {"max_src_len", "max_len"}),
        (Lengths(61, 30, 30), [(70, 5)], {"max_source_length"}),
        (Lengths(61, 30, 30), [(5, 70), (70, 5)], {"max_source_length", "max_target_length"}),
        (Lengths(60, is_skip=True), [(70, 5), (5, 5)], {"max_len"}),
    ],
)
def test_the_flags_that_are_named_hold_every_row(lengths, sizes, flags, glm3):
    [lost] = shortfalls(reports(glm3, lengths, *sizes), lengths, 0)
    words = lost.line.split()
    named = {word[2:]: int(words[i + 1]) for i, word in enumerate(words) if word.startswith("--max")}
    assert named.keys() == flags
    longer = {"max_len": lengths.max_len, "max_src_len": lengths.max_src_len} | named
    if lengths.max_tgt_len is not None:
        source, target = named.get("max_source_length", 30), named.get("max_target_length", 30)
        mended = Lengths(source + target + 1, source, target)
    else:
        mended = Lengths(longer["max_len"], longer["max_src_len"])
    assert shortfalls(reports(glm3, mended, *sizes), mended, 0) == []


def test_the_oldest_turns_are_named_without_a_number(glm3):
    talk = [{"role": ("user", "assistant")[i % 2], "content": "云川岭溪" * 5} for i in range(8)]
    lengths = Lengths(60)
    [lost] = shortfalls([encoded([Record(tuple(talk), "here")], glm3, lengths)[1]], lengths, 0)
    assert "(1 dialogues' oldest turns); a larger --max_len keeps more" in lost.line


def test_bad_records_and_those_with_nothing_to_learn_count_too(glm3):
    mute = [{"role": "user", "content": "云"}, {"role": "assistant", "content": "川", "loss": False}]
    report = encoded([Record(tuple(mute), "here"), *[single("云", "川")] * 8], glm3, Lengths(60))[1]
    lost = shortfalls([report], Lengths(60), rejected=1)
    assert [shortfall.share for shortfall in lost] == [0.1, 0.1]
    assert "rejected.jsonl" in lost[0].line
    assert "--loss_on" in lost[1].line
