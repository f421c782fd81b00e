"""`glmft chat`, through a pipe and in a terminal."""

import io
import json
import os
import sys
import time

import pytest
from predicted import predicted
from taught import TOOLS, WEATHER, teach

import glmft
from glmft.cli import main
from glmft.commands.chat_commands import run_command
from glmft.commands.talk import Talk
from glmft.data.formats import read_records
from glmft.errors import ConfigError
from glmft.inference.model_set import open_models
from glmft.inference.replies import stream
from glmft.settings.answers import SamplingSettings
from glmft.settings.config import ModelSettings

GREETING = ("你好", "你好云川")


@pytest.fixture(scope="module")
def folder(official_folders, tmp_path_factory):
    """A model that knows one answer."""
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), GREETING, strict=True)]
    base = official_folders["glm3"]
    return teach(tmp_path_factory.mktemp("chat") / "taught", base, [{"tools": [WEATHER], "messages": messages}])


@pytest.fixture(scope="module")
def models(folder, official_folders):
    return open_models([folder, official_folders["glm"]], ModelSettings(dtype="fp32", device="cpu"))


@pytest.fixture
def talk(models):
    return Talk(models, SamplingSettings(max_new_tokens=8))


def ask(talk, text, name=None):
    name = name or talk.current
    reply, note = talk.ask(name, text)
    for _ in stream(talk.models, reply):
        pass
    talk.keep(name, text, reply)
    return reply.text, note


def answer_of(models, name, messages):
    with models.at_work(name) as (model, tokenizer):
        return predicted(model, tokenizer, [messages], max_new_tokens=8)[0]


def piped(argv, text, capsys, monkeypatch):
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    code = main(["chat", *map(str, argv), "--device", "cpu", "--max_new_tokens", "8"])
    out, err = capsys.readouterr()
    return code, out.splitlines(), [line for line in err.splitlines() if line.startswith(("error", "("))]


def test_lines_of_a_pipe_are_answered_line_by_line(folder, capsys, monkeypatch):
    model, tokenizer = glmft.load(folder, dtype="fp32", device="cpu")
    expected = predicted(model, tokenizer, ["云", "川 岭"], max_new_tokens=8)
    argv = [folder, "--history", "False"]
    text = "\ufeff云\r\n\n川 岭".encode()
    code, out, err = piped(argv, text, capsys, monkeypatch)
    assert (code, out) == (0, "\n".join(expected).splitlines())
    code, out, err = piped(argv, "云\n".encode() + b"\xff\n/toolz\n/exit\n" + "川 岭\n".encode(), capsys, monkeypatch)
    assert (code, out) == (2, expected[0].splitlines())
    assert err[-2:] == [
        "error: a line of standard input is not UTF-8",
        "error: /toolz: no such command; did you mean /tools?; see /help",
    ]


def test_a_question_belongs_to_the_conversation_until_it_is_reset(talk, models):
    first, _ = ask(talk, "云")
    conversation = [{"role": "user", "content": "云"}, {"role": "assistant", "content": first}]
    second = {"role": "user", "content": "川"}
    assert ask(talk, "川")[0] == answer_of(models, "taught", [*conversation, second])
    run_command(talk, "/reset")
    assert ask(talk, "川")[0] == answer_of(models, "taught", [second])
    alone = Talk(models, talk.sampling, history=False)
    ask(alone, "云")
    assert ask(alone, "川")[0] == answer_of(models, "taught", [second])


def test_a_system_text_stands_before_the_conversation(talk, models):
    with pytest.raises(ConfigError, match="glm is a glm model, which knows no system text"):
        run_command(talk, "/system 你是川")
    talk.models = open_models([models["taught"].place.base], ModelSettings(dtype="fp32", device="cpu"))
    run_command(talk, "/system 你是川")
    told = [{"role": "system", "content": "你是川"}, {"role": "user", "content": "云"}]
    assert ask(talk, "云")[0] == answer_of(talk.models, "taught", told)
    run_command(talk, "/system")
    assert ask(talk, "云")[0] == answer_of(talk.models, "taught", told[1:])


def test_all_models_answer_when_they_are_compared(talk, models):
    run_command(talk, "/compare")
    assert talk.asked == ["taught", "glm"]
    for name in talk.asked:
        assert ask(talk, "云", name)[0] == answer_of(models, name, [{"role": "user", "content": "云"}])
    run_command(talk, "/model glm")
    assert talk.asked == ["glm"]
    with pytest.raises(ConfigError, match="no such model; did you mean taught"):
        run_command(talk, "/model taugt")


def test_what_is_saved_is_read_by_training(talk, tmp_path):
    path = tmp_path / "saved.jsonl"
    with pytest.raises(ConfigError, match="nothing has been asked yet"):
        run_command(talk, f"/save {path}")
    texts = [ask(talk, text)[0] for text in ("云", "川")]
    run_command(talk, f"/save {path}")
    (record,) = read_records(path)[0]
    assert [message["content"] for message in record.messages] == ["云", texts[0], "川", texts[1]]
    with pytest.raises(ConfigError, match="is there already"):
        run_command(talk, f"/save {path}")
    with pytest.raises(ConfigError, match="cannot be written"):
        run_command(talk, f"/save {tmp_path}/no/such/place")


def test_tools_are_told_and_their_calls_wait_for_a_result(models, tmp_path, folder):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS), encoding="utf-8")
    alone = open_models([folder], ModelSettings(dtype="fp32", device="cpu"))
    talk = Talk(alone, SamplingSettings(max_new_tokens=60))
    run_command(talk, f"/tools {file}")
    assert ask(talk, GREETING[0])[0] == GREETING[1]
    call = {"role": "assistant", "metadata": "weather", "content": "…", "arguments": {"city": "云"}}
    talk.rounds["taught"] += [{"role": "user", "content": "云"}, call]
    assert talk.label == "weather"
    reply, _ = talk.ask("taught", "雨")
    told = [{"role": "system", "tools": [WEATHER]}, *talk.rounds["taught"], {"role": "observation", "content": "雨"}]
    assert reply.prompt == alone["taught"].tokenizer.chat_ids(told)
    saved = talk.records()[0]["messages"]
    assert saved[0] == {"role": "system", "tools": [WEATHER], "content": ""}
    assert saved[-1] == {"role": "assistant", "metadata": "weather", "content": "…"}
    for text in ("{", '"x"', '[{"type": "x"}]'):
        file.write_text(text)
        with pytest.raises(ConfigError):
            run_command(talk, f"/tools {file}")
    assert talk.tools == TOOLS
    with pytest.raises(ConfigError, match="glm knows no tools"):
        Talk(models, SamplingSettings()).set_tools(TOOLS)


def test_the_oldest_rounds_go_when_there_is_no_room_for_them(talk, monkeypatch):
    ask(talk, "云" * 10)
    ask(talk, "川" * 10)
    member = type(talk.models["taught"])
    room = len(talk.ask("taught", "岭")[0].prompt) + 7
    monkeypatch.setattr(member, "longest", property(lambda self: room))
    _, note = ask(talk, "岭")
    assert note == "(taught: the oldest 1 questions no longer fit and are left out)"
    assert [message["content"] for message in talk.rounds["taught"] if message["role"] == "user"] == ["川" * 10, "岭"]


@pytest.mark.slow
def test_in_a_terminal_words_stream_and_an_interrupt_stops_the_answer_alone(official_folders):
    pexpect = pytest.importorskip("pexpect")
    argv = ["-m", "glmft", "chat", str(official_folders["glm3"]), "--device", "cpu", "--max_new_tokens", "100000"]
    env = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    child = pexpect.spawn(sys.executable, argv, env=env, encoding="utf-8", timeout=120, codec_errors="replace")
    child.expect("glm3>")
    child.send("云川\r")
    time.sleep(2)
    child.sendintr()
    child.expect(r"\(stopped; Ctrl-D leaves\)")
    child.expect("glm3>")
    child.send("/model\r")
    child.expect(r"\* glm3")
    child.send("\x04")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
