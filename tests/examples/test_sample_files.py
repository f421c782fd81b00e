"""The sample files of examples/data, one for each format."""

import pytest

from examples.quickstart.run import ROOT
from glmft.data.formats import Options, file_format, read_records

FORMAT_OF = {
    "triples.jsonl": "triples",
    "pairs.jsonl": "pairs",
    "messages.jsonl": "messages",
    "messages_tools.jsonl": "messages",
    "conversations_tools.jsonl": "conversations",
    "sharegpt_tools.jsonl": "sharegpt",
    "question_answer.csv": "question",
    "text.jsonl": "text",
}


@pytest.mark.parametrize("name", FORMAT_OF)
def test_a_sample_file_is_read_as_its_format_to_the_last_record(name):
    path = ROOT / "examples" / "data" / name
    records, rejected = read_records(path)
    assert file_format(path, Options()) == FORMAT_OF[name]
    assert len(records) == len(path.read_text(encoding="utf-8").splitlines()) - (path.suffix == ".csv")
    assert not rejected.reasons


@pytest.mark.parametrize("name", ["messages_tools.jsonl", "conversations_tools.jsonl", "sharegpt_tools.jsonl"])
def test_the_samples_with_tools_hold_calls_and_what_came_of_them(name):
    records, _ = read_records(ROOT / "examples" / "data" / name)
    messages = [message for record in records for message in record.messages]
    assert {"get_weather", "get_price"} <= {message.get("metadata") for message in messages}
    assert any(message["role"] == "observation" for message in messages)
    assert any(message.get("tools") for message in messages)


def test_the_samples_of_sharegpt_and_of_chat_services_are_the_same_dialogues():
    files = [ROOT / "examples" / "data" / f"{name}_tools.jsonl" for name in ("sharegpt", "messages")]
    sharegpt, messages = (
        [[message for message in record.messages if "tools" not in message] for record in read_records(path)[0]]
        for path in files
    )
    assert sharegpt == messages
