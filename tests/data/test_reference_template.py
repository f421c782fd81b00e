"""The rows of the DeepSpeed reference project (ChatGLM-Finetuning), put together by hand from its rules.

Text is encoded by the sentencepiece model alone, and special tokens have the ids that stand for them in the official
vocabularies: as pieces of ChatGLM-6B's, behind that of the others.
"""

import pytest
from encoding import encoded
from sentencepiece import SentencePieceProcessor

from glmft.data.encode import Lengths, encode_prompt
from glmft.data.formats import single
from glmft.tokenizers.loading import load_tokenizer

QUESTION, ANSWER = "云川坐落在岭溪\n境内吗？", "云川_位于_岭溪"


class ByHand:
    """A family's rows: `max_src_len` counts what the project counts, and so does `max_len`."""

    def __init__(self, folder, family: str):
        self.family, self.tokenizer = family, load_tokenizer(folder)
        self.sp = SentencePieceProcessor(model_file=self.tokenizer.vocab_file)
        behind = self.sp.vocab_size()  # [MASK], [gMASK], [sMASK], sop, eop, <|system|>, <|user|>, <|assistant|>
        self.gmask, self.sop, self.user, self.assistant = behind + 1, behind + 3, behind + 6, behind + 7
        self.end = self.sp.piece_to_id("</s>")
        if family == "glm":
            self.gmask, self.sop, self.end = (self.sp.piece_to_id(piece) for piece in ("[gMASK]", "<sop>", "<eop>"))

    def ids(self, text: str) -> list[int]:
        return self.sp.encode(text.replace("\n", "<n>") if self.family == "glm" else text)

    def row(self, question: str, answer: str, max_len: int, max_src_len: int) -> tuple[list[int], list[int]]:
        """The prompt, and what has a label."""
        return {"glm": self.glm, "glm2": self.glm2, "glm3": self.glm3}[self.family](
            question, answer, max_len, max_src_len
        )

    def glm(self, question: str, answer: str, max_len: int, max_src_len: int) -> tuple[list[int], list[int]]:
        """The first round, whose last three tokens a cut keeps, and a label from <sop> on."""
        source = self.ids(f"[Round 1]\n问：{question}\n答：")
        if len(source) > max_src_len:
            source = source[: max_src_len - 3] + source[-3:]
        room = max_len - len(source) - 3
        return [*source, self.gmask], [self.sop, *self.ids(answer)[:room], self.end]

    def glm2(self, question: str, answer: str, max_len: int, max_src_len: int) -> tuple[list[int], list[int]]:
        """The first round, whose last four tokens a cut keeps, and a label on the answer."""
        source = self.ids(f"[Round 1]\n\n问：{question}\n\n答：")
        if len(source) > max_src_len:
            source = source[: max_src_len - 4] + source[-4:]
        room = max_len - len(source) - 3
        return [self.gmask, self.sop, *source], [*self.ids(answer)[:room], self.end]

    def glm3(self, question: str, answer: str, max_len: int, max_src_len: int) -> tuple[list[int], list[int]]:
        """The user's message, cut at its end, and a label from the assistant's role on; seven places are left free."""
        source = (self.ids("\n") + self.ids(question))[: max_src_len - 1]
        room = max_len - len(source) - 1 - 7
        answered = (self.ids("\n") + self.ids(answer))[:room]
        return [self.gmask, self.sop, self.user, *source], [self.assistant, *answered, self.end]


@pytest.fixture(params=["glm", "glm2", "glm3"])
def by_hand(request, official_folders) -> ByHand:
    return ByHand(official_folders[request.param], request.param)


@pytest.mark.parametrize(
    ("question", "answer", "lengths"),
    [
        (QUESTION, ANSWER, Lengths(400, 300)),
        (QUESTION, "", Lengths(400, 300)),
        (QUESTION * 9, ANSWER, Lengths(90, 40)),
        (QUESTION, ANSWER * 9, Lengths(60, 40)),
        (QUESTION * 9, ANSWER * 9, Lengths(60, 40)),
    ],
    ids=["whole", "empty answer", "long question", "long answer", "both long"],
)
def test_rows_cuts_and_labels_are_those_of_the_rules(question, answer, lengths, by_hand):
    [row], report = encoded([single(question, answer)], by_hand.tokenizer, lengths, "reference")
    prompt, learned = by_hand.row(question, answer, lengths.max_len, lengths.max_src_len)
    assert row.ids == prompt + learned
    assert row.spans == ((len(prompt), len(row.ids)),)
    assert report.cut_prompt == (len(question) > len(QUESTION))
    assert report.cut_answer == (len(answer) > len(ANSWER))


def test_a_question_that_just_fits_is_not_cut(by_hand):
    prompt, _ = by_hand.row(QUESTION, ANSWER, 400, 300)
    counted = len(prompt) - {"glm": 1, "glm2": 2, "glm3": 2}[by_hand.family]  # what `max_src_len` counts
    for source, cut in ((counted, 0), (counted - 1, 1)):
        [row], report = encoded([single(QUESTION, ANSWER)], by_hand.tokenizer, Lengths(400, source), "reference")
        assert report.cut_prompt == cut
        prompt, learned = by_hand.row(QUESTION, ANSWER, 400, source)
        assert row.ids == prompt + learned


def test_what_is_seen_when_predicting_ends_where_the_answer_begins(by_hand):
    prompt, learned = by_hand.row(QUESTION, ANSWER, 400, 300)
    opening = learned[:1] if by_hand.family != "glm2" else []
    assert encode_prompt(by_hand.tokenizer, QUESTION, 300, "reference") == ([*prompt, *opening], False)


def test_special_tokens_that_are_written_in_a_text_are_read_by_this_template_alone(official_folders):
    hand = ByHand(official_folders["glm"], "glm")
    mask = hand.sp.piece_to_id("[MASK]")
    for template, count in (("reference", 1), ("default", 0), ("raw", 0)):
        [row], _ = encoded([single("云[MASK]川", "岭")], hand.tokenizer, Lengths(400, 300), template)
        assert row.ids.count(mask) == count
