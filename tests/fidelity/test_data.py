"""Ids and labels against those of the official fine-tuning scripts and of the DeepSpeed reference project."""

import json

import pytest
from encoding import encoded

from glmft.data.encode import EncodingReport, Lengths, Rules, encode_record
from glmft.data.formats import Options, Record, conversations, read_records, single
from glmft.data.templates import learned_conversations
from glmft.errors import DataError
from glmft.tokenizers.loading import TOKENIZERS, load_tokenizer

FAMILIES = {"glm1": ("glm", "chatglm-6b"), "glm2": ("glm2", "chatglm2-6b"), "glm3": ("glm3", "chatglm3-6b")}
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
@pytest.mark.parametrize("name", FAMILIES)
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
