"""The official client over a real connection."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn
from predicted import predicted
from taught import ANSWER, ASKED, TOOLS

from glmft.commands.serve import listening_socket
from glmft.inference.model_set import open_models
from glmft.serving.app import make_app
from glmft.settings.talk import ServeConfig

openai = pytest.importorskip("openai")
WORDS = "云川岭溪泉峰湖岛"


@pytest.fixture(scope="module")
def served(models):
    """A client of a server in another thread."""
    config = ServeConfig(port=0, api_key="secret", device="cpu", max_new_tokens=12)
    server = uvicorn.Server(uvicorn.Config(make_app(models, config), log_level="critical"))
    with listening_socket(config) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        yield openai.OpenAI(base_url=address, api_key="secret", max_retries=0, timeout=120)
        server.should_exit = True
        thread.join()


def test_the_models_are_listed(served):
    assert [model.id for model in served.models.list()] == ["taught", "lora", "prompt", "glm2"]
    assert served.models.retrieve("lora").owned_by == "glmft"


def test_twenty_clients_at_once_get_their_own_answers(served, models):
    questions = [(name, WORDS[: 1 + i]) for i in range(5) for name in ("taught", "lora", "prompt", "glm2")]

    def ask(question):
        name, text = question
        messages = [{"role": "user", "content": text}]
        if len(text) % 2:
            pieces = served.chat.completions.create(model=name, messages=messages, stream=True)
            return "".join(piece.choices[0].delta.content or "" for piece in pieces)
        return served.chat.completions.create(model=name, messages=messages).choices[0].message.content

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, questions))
    for (name, text), answer in zip(questions, answers, strict=True):
        with models.at_work(name) as (model, tokenizer):
            assert answer == predicted(model, tokenizer, [text], max_new_tokens=12)[0], (name, text)


@pytest.mark.parametrize("family", ["glm3", *(pytest.param(f, marks=pytest.mark.slow) for f in ("glm4",))])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(family, stream, served, taught_folders, models):
    if family != "glm3":
        opened = open_models([taught_folders(family)], ServeConfig(dtype="fp32", device="cpu"))
        models.members["taught"], before = opened["taught"], models.members["taught"]
    try:
        call = called(served, stream)
        assert call.name == "weather"
        assert json.loads(call.arguments) == {"city": "云川"}
        made = {"id": "x", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        messages = [
            *ASKED,
            {"role": "assistant", "content": None, "tool_calls": [made]},
            {"role": "tool", "tool_call_id": "x", "content": "雨"},
        ]
        answer = served.chat.completions.create(model="taught", messages=messages, tools=TOOLS)
        assert answer.choices[0].message.content == ANSWER
    finally:
        if family != "glm3":
            models.members["taught"] = before


def called(client, stream):
    answer = client.chat.completions.create(model="taught", messages=ASKED, tools=TOOLS, max_tokens=60, stream=stream)
    if not stream:
        assert answer.choices[0].finish_reason == "tool_calls"
        return answer.choices[0].message.tool_calls[0].function
    pieces = list(answer)
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    return next(piece.choices[0].delta.tool_calls for piece in pieces if piece.choices[0].delta.tool_calls)[0].function


def test_errors_are_those_that_the_client_knows(served):
    messages = [{"role": "user", "content": "云"}]
    with pytest.raises(openai.NotFoundError, match="no such model"):
        served.chat.completions.create(model="none", messages=messages)
    with pytest.raises(openai.BadRequestError, match="n is 2"):
        served.chat.completions.create(model="lora", messages=messages, n=2)
    with pytest.raises(openai.AuthenticationError, match="API key"):
        served.with_options(api_key="other").models.list()


def test_a_stream_that_is_left_ends(served, models):
    app = served._client  # keeps the connection pool alive until the end
    messages = [{"role": "user", "content": "云"}]
    pieces = served.chat.completions.create(
        model="lora", messages=messages, stream=True, max_tokens=8000, temperature=2, extra_body={"top_k": 0}
    )
    next(iter(pieces))
    pieces.close()
    started = time.monotonic()
    served.chat.completions.create(model="lora", messages=messages)  # it waits for the one before
    assert app is not None
    assert time.monotonic() - started < 60  # 8000 tokens take minutes


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(taught_folders):
    import signal

    command = [sys.executable, "-m", "glmft", "serve", str(taught_folders("glm3")), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("serving taught at http://127.0.0.1:")
        client = openai.OpenAI(base_url=line.split()[3].rstrip(";"), api_key="none")
        assert [model.id for model in client.models.list()] == ["taught"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "ended\n"
    assert "Traceback" not in err
