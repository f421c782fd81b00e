"""What the quickstart claims of its files, asked of the files themselves."""

import json
import random
import re

import pytest

from examples.quickstart import first_lesson, sentences, template_regex
from examples.quickstart.make_base import SecondLesson
from examples.quickstart.run import TESTS, read

TRAIN = read("train.json")
FILES = {title: read(name) for title, name in TESTS.items()}


def triples(records):
    return [line.split("_") for record in records for line in record["output"].split("\n")]


def names(records):
    return {name for head, _, tail in triples(records) for name in (head, tail)}


def test_the_shipped_files_are_what_the_generator_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "__file__", str(tmp_path / "sentences.py"))
    sentences.main()
    for name in ("train.json", *TESTS.values()):
        written = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        assert written == read(name)


@pytest.mark.parametrize("title", TESTS)
def test_no_name_of_a_test_file_is_in_the_training_file(title):
    assert not names(FILES[title]) & names(TRAIN)


def test_a_relation_has_more_than_thirty_patterns_in_training_and_others_held_out():
    trained = sentences.patterns(sentences.TASK, lambda frames: frames[: -sentences.HELD_OUT])
    held_out = sentences.patterns(sentences.TASK, lambda frames: frames[-sentences.HELD_OUT :])
    assert not set(trained) & set(held_out)
    for relation in sentences.TASK:
        assert sum(pattern.relation == relation for pattern in trained) >= 30
        assert sum(pattern.relation == relation for pattern in held_out) >= 15


@pytest.mark.parametrize("frames", [sentences.VERB_FRAMES, sentences.NOUN_FRAMES])
def test_no_training_sentence_is_built_with_a_held_out_frame(frames):
    text = "".join(record["input"] for record in TRAIN)
    for frame in frames[-sentences.HELD_OUT :]:
        own_words = max(re.split(r"\{[abc]\}", frame), key=len)
        assert own_words not in text


def test_the_worlds_share_no_relation_and_no_cue():
    base, task = sentences.patterns(sentences.BASE), sentences.patterns(sentences.TASK)
    cues = {pattern.cue for pattern in task}
    assert not set(sentences.TASK) & {*sentences.BASE, *first_lesson.IDIOMS}
    assert not cues & {pattern.cue for pattern in base}
    idioms = [idiom for of_relation in first_lesson.IDIOMS.values() for idiom in of_relation]
    assert not [cue for cue in cues for idiom in idioms if cue in idiom]


def test_the_second_lesson_makes_up_no_word_of_the_task():
    lesson, rng = SecondLesson(sentences.entities()[0]), random.Random(3)
    assert not {lesson.word(rng, 2) for _ in range(2000)} & {p.cue for p in sentences.patterns(sentences.TASK)}


def test_the_regex_reads_a_pattern_that_it_has_learned_and_no_other():
    rows = [{"input": "今天云川治好岭溪，松柏在场。", "output": "云川_治疗_岭溪"}]
    rows += [{"input": "梅兰治好竹菊。", "output": "梅兰_治疗_竹菊"}]
    expressions = template_regex.learn(rows)
    assert template_regex.answer(expressions, "据说溪川治好菊兰；兰竹治好云岭。") == "溪川_治疗_菊兰\n兰竹_治疗_云岭"
    assert template_regex.answer(expressions, "菊兰被溪川治好了。") == ""
