"""Plain text for continued pre-training."""

import pytest
from encoding import encoded

from glmft.data.collate import collate
from glmft.data.encode import Lengths, document_rows
from glmft.data.record import TEXT, Record
from glmft.data.stream import stream_records
from glmft.errors import DataError
from glmft.settings.config import DataSettings
from glmft.settings.sources import find_sources

DOCUMENT = "云川岭溪，\n  风扇不转。" * 7


@pytest.fixture(params=["glm", "glm2", "glm3", "glm4"])
def tokenizer(request, official_folders):
    from glmft.tokenizers.loading import load_tokenizer

    return load_tokenizer(official_folders[request.param])


def document(text: str) -> Record:
    return Record(({"role": TEXT, "content": text},), "here")


@pytest.mark.parametrize("max_len", [8, 16, 17, 4096])
def test_a_document_is_all_in_its_rows_whatever_their_length(max_len, tokenizer):
    rows = document_rows(DOCUMENT, tokenizer, max_len, "here")
    start, whole = tokenizer.prefix_ids, [*tokenizer.encode_text(DOCUMENT), tokenizer.eos_token_id]
    assert [row.ids[: len(start)] for row in rows] == [start] * len(rows)
    assert [token for row in rows for token in row.ids[len(start) :]] == whole
    assert all(row.spans == ((len(start), len(row.ids)),) for row in rows)
    assert {len(row.ids) for row in rows[:-2]} <= {max_len}
    assert len(rows) == -(-len(whole) // (max_len - len(start)))


def test_an_end_token_never_stands_alone_in_a_row(tokenizer):
    length = len(tokenizer.encode_text(DOCUMENT))
    rows = document_rows(DOCUMENT, tokenizer, length + len(tokenizer.prefix_ids), "here")
    assert [row.supervised for row in rows] == [length - 1, 2]


def test_the_report_counts_documents_and_those_that_take_several_rows(tokenizer):
    rows, report = encoded([document(DOCUMENT), document("云")], tokenizer, Lengths(16, 8))
    assert (report.read, report.texts, report.split_texts, report.kept) == (2, 2, 1, len(rows))
    assert (report.dropped, report.cut_prompt, report.cut_answer) == (0, 0, 0)
    assert encoded([document(DOCUMENT)], tokenizer, Lengths(16, 8, is_skip=True))[0] == rows[:-1]


def test_every_token_of_the_text_is_predicted_from_those_before_it(tokenizer):
    [row] = document_rows("云川", tokenizer, 64, "here")
    batch = collate([row], tokenizer)
    assert batch["loss_positions"].tolist() == list(range(1, len(row.ids) - 1))
    assert batch["labels"][0, 2:].tolist() == row.ids[2:]


def test_a_row_without_room_for_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="--max_len 3 leaves no room for text behind its 2 special tokens"):
        document_rows("云", tokenizer, 3, "here")


def test_a_document_has_no_question_to_be_answered(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "云"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:1: is plain text, which asks nothing"):
        list(stream_records(find_sources(str(tmp_path / "a.jsonl")), DataSettings()))
