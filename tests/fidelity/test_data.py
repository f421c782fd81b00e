"""Ids and labels against those of the official fine-tuning scripts and of the DeepSpeed reference project."""

import json

import pytest
from encoding import encoded

from glmft.data.encode import EncodingReport, Lengths, Rules, encode_record
from glmft.data.formats import Options, Record, conversations, messages, read_records, single
from glmft.data.templates import answer_ids, learned_conversations, prompt_ids
from glmft.errors import DataError
from glmft.tokenizers.loading import TOKENIZERS, load_tokenizer

FAMILIES = {
    "glm1": ("glm", "chatglm-6b"),
    "glm2": ("glm2", "chatglm2-6b"),
    "glm3": ("glm3", "chatglm3-6b"),
    "glm4": ("glm4", "glm-4-9b-chat"),
}
PROJECTS = ["glm1", "glm2", "glm3"]  # the families that the DeepSpeed reference project knows
# Conversations that are refused, or taken in another way, on purpose: what the official script makes of them.
REFUSED = {
    "no_messages": "nothing to learn",
    "metadata_null": "the official template writes the word None",
    "tools_null": "a TypeError there",
    "tools_null_on_user": "a TypeError there, or dropped",
    "role_missing": "written out as text there",
    "content_missing": "the message is dropped there",
    "content_null": "the message is dropped there",
    "content_number": "written out there",
}
OTHERWISE = {
    "unknown_role": "a tool's message, as OpenAI has it, is an observation here",
    "special_text": "text that looks like a special token becomes one there",
    "assistant_mark_in_answer": "the same",
    "empty_answer": "dropped there, so that nothing is learned; the end alone is learned here",
    "empty_contents": "the same",
}
LONG = Lengths(100_000, 50_000)


def labels(example) -> list[int]:
    supervised = {i for first, end in example.spans for i in range(first, end)}
    return [token if i in supervised else -100 for i, token in enumerate(example.ids)]


def tokenizer_of(name: str, shared, official: bool = True):
    family, folder = FAMILIES[name]
    if official:
        return load_tokenizer(shared / "official" / folder, family)
    return TOKENIZERS[family].from_pretrained(shared / "goldens" / name / "tokenizer")


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("name", PROJECTS)
def test_the_reference_template_gives_the_reference_projects_rows_cuts_and_labels(name, official, shared):
    tokenizer = tokenizer_of(name, shared, official)
    file = shared / "goldens" / name / f"{'official_' if official else ''}dataset_goldens.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    lines = read_records(shared / "data" / data["source_file"])[0]
    chosen = [lines[i] for i in data["source_lines"]]
    for run in data["runs"]:
        lengths = Lengths(run["max_len"], run["max_src_len"], is_skip=run["is_skip"])
        examples, report = encoded(chosen, tokenizer, lengths, "reference")
        assert [e.ids for e in examples] == [golden["input_ids"] for golden in run["examples"]]
        assert [labels(e) for e in examples] == [golden["labels"] for golden in run["examples"]]
        assert run["printed"].endswith(f" {report.dropped}")


def test_chatglm3_dialogues_have_the_official_ids_and_labels(shared):
    tokenizer = tokenizer_of("glm3", shared)
    file = shared / "goldens" / "glm3" / "conversation_goldens.json"
    compared, refused = 0, []
    for golden in json.loads(file.read_text(encoding="utf-8"))["multi_turn"]:
        if "error" in golden:
            with pytest.raises(DataError):
                conversations(golden["source"], Options())
            refused.append(golden["name"])
            continue
        if golden["source"]["conversations"] == [] or golden["whole_length"] > len(golden["input_ids"]):
            continue  # nothing said; or cut, where the official script loses the end of the row
        record = Record(conversations(golden["source"], Options()), golden["name"])
        if not learned_conversations(tokenizer, record.messages):
            assert set(golden["labels"]) == {-100}
            continue
        [example] = encode_record(record, tokenizer, Rules(LONG), EncodingReport())
        assert example.ids == golden["input_ids"], golden["name"]
        assert labels(example) == golden["labels"], golden["name"]
        compared += 1
    assert compared > 40
    assert len(refused) == 11


@pytest.mark.parametrize("name", ["glm1", "glm2"])
def test_uncut_pairs_have_the_ids_and_labels_of_the_official_script(name, shared):
    """Without a history: with one, the official script counts rounds in another way than the official chat."""
    tokenizer = tokenizer_of(name, shared)
    data = json.loads((shared / "goldens" / name / "pair_goldens.json").read_text(encoding="utf-8"))
    compared = 0
    for golden in data["train"]:
        example, setting = data["examples"][golden["example"]], data["settings"][golden["setting"]]
        plain = not example.get("history") and not setting.get("source_prefix") and not setting.get("history_column")
        special = any(token in str(example) for token in ("<sop>", "<eop>", "<pad>", "<unk>", "[MASK]"))
        ignored = setting.get("ignore_pad_token_for_loss", True)
        whole = len(golden["input_ids"]) < min(setting["max_source_length"], setting["max_target_length"])
        if not (plain and ignored and whole) or (special and name == "glm1"):
            continue
        record = single(example["prompt"], example["response"])
        [ours] = encode_record(record, tokenizer, Rules(LONG), EncodingReport())
        assert ours.ids == golden["input_ids"]
        assert labels(ours) == golden["labels"]
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize(("combine", "loss_on"), [(True, "combined"), (False, "all")])
def test_glm4_conversations_have_the_official_ids_and_labels(combine, loss_on, shared):
    tokenizer = tokenizer_of("glm4", shared)
    compared = 0
    for golden in goldens_of_glm4(shared, "process_batch", combine):
        name = golden["name"]
        if name in REFUSED:
            with pytest.raises(DataError):
                messages(golden["source"], Options())
            continue
        record = Record(messages(golden["source"], Options()), name)
        found = encode_record(record, tokenizer, Rules(LONG, loss_on=loss_on), EncodingReport())
        if name in OTHERWISE or "error" in golden or was_cut(golden):
            continue
        if set(golden["labels"]) == {-100}:
            assert not found, name
            continue
        if name == "tools_on_user" and not combine:
            continue  # tools of any but a system message are dropped there
        [example] = found
        assert example.ids == golden["input_ids"], name
        assert labels(example) == golden["labels"], name
        compared += 1
    assert compared > 30


def test_glm4_prompts_are_those_of_the_official_evaluation(shared):
    """Where the official script does not put the answer into the prompt, and cuts nothing."""
    tokenizer = tokenizer_of("glm4", shared)
    compared = 0
    for golden in goldens_of_glm4(shared, "process_batch_eval", combine=False):
        if golden["name"] in {**REFUSED, **OTHERWISE} or "error" in golden or "tools_on_user" in golden["name"]:
            continue
        whole = messages(golden["source"], Options())
        answers = [i for i, message in enumerate(whole) if message["role"] == "assistant"]
        for i, pair in zip(answers, golden["pairs"], strict=False):
            prompt, answer = prompt_ids(tokenizer, whole[:i]), answer_ids(tokenizer, whole[i])
            whole_there = len(prompt) <= golden["max_input_length"] and len(answer) < golden["max_output_length"]
            if whole[i]["content"] and whole_there:
                assert prompt == pair["input_ids"], golden["name"]
                assert [*answer, tokenizer.end_id][: len(pair["output_ids"])] == pair["output_ids"], golden["name"]
                compared += 1
    assert compared > 30


def goldens_of_glm4(shared, function: str, combine: bool) -> list[dict]:
    file = shared / "goldens" / "glm4" / "conversation_goldens.json"
    return [g for g in json.loads(file.read_text(encoding="utf-8"))[function] if g["combine"] == combine]


def was_cut(golden: dict) -> bool:
    return len(golden.get("input_ids", ())) == golden["max_input_length"] + golden["max_output_length"] + 1
