"""The server by requests, without a network."""

import asyncio
import json
import time

import pytest
from predicted import predicted
from starlette.testclient import TestClient
from taught import ANSWER, ASKED, CALLED, RETURNED, TOOLS

from glmft.inference import replies
from glmft.serving import dispatcher
from glmft.serving.app import make_app
from glmft.settings.talk import ServeConfig

PATH = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "云川岭溪"}]
PLAIN = {"model": "taught", "messages": QUESTION}
JSON = {"Content-Type": "application/json"}


def client_of(models, **settings):
    app = make_app(models, ServeConfig(**{"max_new_tokens": 12, "device": "cpu", **settings}))
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(models):
    with client_of(models) as client:
        yield client


def answer_of(models, name, messages, **settings):
    """What `predict` answers."""
    with models.at_work(name) as (model, tokenizer):
        return predicted(model, tokenizer, [messages], **settings)[0]


def chunks(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_models_are_listed(client):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["taught", "lora", "prompt", "glm2"]
    assert client.get("/v1/models/lora").json()["id"] == "lora"
    assert client.get("/v1/models/no/such").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("name", ["taught", "lora", "prompt", "glm2"])
def test_an_answer_is_that_of_predict(name, client, models):
    body = client.post(PATH, json={**PLAIN, "model": name}).json()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer_of(models, name, QUESTION, max_new_tokens=12)}
    assert body["object"] == "chat.completion"
    assert body["model"] == name
    prompt = models[name].tokenizer.chat_ids(QUESTION)
    usage = body["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == len(prompt) + usage["completion_tokens"]
    assert choice["finish_reason"] == ("length" if usage["completion_tokens"] == 12 else "stop")


def test_a_streamed_answer_is_the_same_in_pieces(client):
    whole = client.post(PATH, json={**PLAIN, "max_tokens": 30}).json()
    asked = {**PLAIN, "max_tokens": 30, "stream": True, "stream_options": {"include_usage": True}}
    *pieces, last = chunks(client.post(PATH, json=asked))
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces][-1] == whole["choices"][0]["finish_reason"]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert len({piece["id"] for piece in [*pieces, last]}) == 1


def test_a_conversation_with_a_system_text_and_parts_is_that_of_training(client, models):
    messages = [
        {"role": "developer", "content": "你是川"},
        {"role": "user", "content": [{"type": "text", "text": "云"}, {"type": "text", "text": "川"}]},
        {"role": "assistant", "content": "岭"},
        {"role": "user", "content": "溪"},
    ]
    plain = [{"role": "system", "content": "你是川"}, {"role": "user", "content": "云川"}, *messages[2:]]
    body = client.post(PATH, json={"model": "lora", "messages": messages}).json()
    assert body["choices"][0]["message"]["content"] == answer_of(models, "lora", plain, max_new_tokens=12)


def test_draws_hang_on_the_seed_and_stop_texts_end_answers(client):
    def content(**more):
        return client.post(PATH, json={**PLAIN, "model": "lora", **more}).json()["choices"][0]["message"]["content"]

    hot = {"temperature": 2, "top_p": 1, "top_k": 0}
    assert content(**hot, seed=1) == content(**hot, seed=1)
    assert len({content(**hot, seed=seed) for seed in range(4)}) > 1
    assert content(temperature=0) == content(temperature=1e-300, seed=5) == content(top_p=0) == content()
    whole = content()
    assert content(stop=whole[2]) == whole[: whole.index(whole[2])].strip()
    assert content(stop=["nowhere", whole[2]]) == content(stop=whole[2])


# ------------------------------------------------------------------------------------------------------------ tools


def test_a_tool_is_called_and_its_result_answered(client):
    asked = {"model": "taught", "messages": ASKED, "tools": TOOLS, "max_tokens": 60}
    (choice,) = client.post(PATH, json=asked).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "云川"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "雨"}
    body = client.post(PATH, json={**asked, "messages": [*ASKED, choice["message"], result]}).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}


def test_a_streamed_call_is_no_text(client):
    asked = {"model": "taught", "messages": ASKED, "tools": TOOLS, "max_tokens": 60, "stream": True}
    deltas = [piece["choices"][0]["delta"] for piece in chunks(client.post(PATH, json=asked))]
    assert "".join(delta.get("content") or "" for delta in deltas) == ""
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert call["index"] == 0
    assert json.loads(call["function"]["arguments"]) == {"city": "云川"}
    greeted = {**asked, "messages": [{"role": "user", "content": "你好"}]}
    deltas = [piece["choices"][0]["delta"] for piece in chunks(client.post(PATH, json=greeted))]
    assert "".join(delta.get("content") or "" for delta in deltas) == "你好云川"
    assert len([delta for delta in deltas if delta.get("content")]) > 1


# -------------------------------------------------------------------------------------------------- what is refused

REFUSED = [
    ({"n": 2}, 400, "n is 2"),
    ({"n": True}, 400, "n is True"),
    ({"model": "../../etc/passwd"}, 404, "no such model"),
    ({"model": "/etc"}, 404, "no such model"),
    ({"model": ["taught"]}, 400, "model is ['taught']"),
    ({"model": None}, 400, "model is None"),
    ({"messages": []}, 400, "messages must end with a question"),
    ({"messages": "云"}, 400, "messages is '云'"),
    ({"messages": ["云"]}, 400, "messages is ['云']"),
    ({"messages": [{}]}, 400, "messages[0].role is None"),
    ({"messages": [{"role": "root", "content": "云"}]}, 400, "messages[0].role is 'root'"),
    ({"messages": [{"role": ["user"], "content": "云"}]}, 400, "messages[0].role is ['user']"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content must be a text"),
    ({"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content must be a text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content must be a text"),
    ({"messages": [{"role": "user", "content": "\0"}]}, 400, "NUL"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "云"}]}, 400, "messages must end with a question"),
    ({"messages": CALLED}, 400, "messages must end with a question"),
    ({"messages": [*CALLED, *QUESTION]}, 400, "have no answer"),
    ({"messages": [{"role": "tool", "content": "雨", "tool_call_id": "x"}]}, 400, "names no tool call"),
    ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": "x"}]}, 400, "tool_calls must be a list"),
    ({"messages": [*QUESTION, {"role": "assistant", "tool_calls": [7]}]}, 400, "must have an id"),
    ({"messages": [*ASKED, {**CALLED[1], "tool_calls": [{"id": "call_1"}]}, RETURNED[2]]}, 400, "function of name"),
    ({"temperature": "hot"}, 400, "temperature is 'hot'"),
    ({"temperature": -1}, 400, "temperature is -1"),
    ({"temperature": 2.5}, 400, "temperature is 2.5"),
    ({"top_p": 1.5}, 400, "top_p is 1.5"),
    ({"max_tokens": 0}, 400, "max_tokens is 0"),
    ({"max_tokens": 10**30}, 400, "max_tokens is 10"),
    ({"max_tokens": 1 << 20}, 400, "takes 8192 together"),
    ({"stop": ""}, 400, "stop is ''"),
    ({"stop": ["a", 3]}, 400, "stop is ['a', 3]"),
    ({"stop": ["a"] * 17}, 400, "stop is"),
    ({"seed": "x"}, 400, "seed is 'x'"),
    ({"stream": "yes"}, 400, "stream is 'yes'"),
    ({"logprobs": True}, 400, "logprobs is True"),
    ({"logit_bias": {"5": 100}}, 400, "logit_bias is"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format is"),
    ({"tool_choice": "required"}, 400, "tool_choice is 'required'"),
    ({"tools": [{"type": "retrieval"}]}, 400, "tools[0].type must be 'function'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "f", "parameters": 3}}]}, 400, "tools[0].function.parameters"),
    ({"model": "glm2", "tools": TOOLS}, 400, "glm2 knows no tools; ChatGLM3 and GLM-4 do"),
    ({"model": "glm2", "messages": [{"role": "system", "content": "云"}, *QUESTION]}, 400, "user and assistant"),
    ({"temprature": 1}, 400, "temprature: no such member; did you mean temperature?"),
]  # fmt: skip


def check_error(response, status, part):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert part in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500
    assert "Traceback" not in response.text


@pytest.mark.parametrize(("changes", "status", "part"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_answered_is_refused_in_one_line(changes, status, part, client):
    check_error(client.post(PATH, json={**PLAIN, **changes}), status, part)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "the body is a list"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"model": "a", "model": "b"}', "stands twice"),
        (b'{"model": "taught", "messages": [], "temperature": NaN}', "NaN is no JSON value"),
        (b'{"model": "taught", "messages": [], "temperature": 1e999}', "beyond every number"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b'{"messages": []}', "model is missing"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body, part, client):
    check_error(client.post(PATH, content=body, headers=JSON), 400, part)


def test_a_request_that_is_too_large_or_of_another_type_is_refused(client):
    check_error(client.post(PATH, content=b" " * (1 << 20) + b"{}", headers=JSON), 413, "larger than 1048576 bytes")
    check_error(client.post(PATH, content=b"{}", headers={"Content-Type": "text/plain"}), 415, "application/json")
    check_error(
        client.post(PATH, json={**PLAIN, "messages": [{"role": "user", "content": "云" * 9000}]}), 400, "tokens"
    )


def test_other_addresses_and_methods_are_refused(client):
    for address in ("/", "/docs", "/openapi.json", "/v1/completions", "/../etc/passwd", "/v1/models/..%2f..%2fetc"):
        check_error(client.get(address), 404, "")
    check_error(client.get(PATH), 405, "")


def test_a_page_of_the_web_cannot_ask_under_a_name_of_its_own(client):
    check_error(client.post(PATH, json=PLAIN, headers={"Host": "evil.example"}), 403, "Host")


def test_only_whoever_knows_the_key_is_let_in(models):
    with client_of(models, api_key="secret", host="0.0.0.0") as client:
        for given in (
            {},
            {"Authorization": "secret"},
            {"Authorization": "Bearer secre"},
            {"Authorization": b"Bearer \xff"},
        ):
            check_error(client.post(PATH, json=PLAIN, headers=given), 401, "API key")
            check_error(client.get("/v1/models", headers=given), 401, "API key")
        known = {"Authorization": "Bearer secret", "Host": "model.example"}
        assert client.post(PATH, json=PLAIN, headers=known).status_code == 200


def test_a_limit_of_the_context_holds(models):
    with client_of(models, max_context=40) as client:
        room = 40 - len(models["glm2"].tokenizer.chat_ids(QUESTION))
        asked = {**PLAIN, "model": "glm2"}
        check_error(client.post(PATH, json={**asked, "max_tokens": room + 1}), 400, "takes 40 together")
        assert client.post(PATH, json={**asked, "max_tokens": room}).json()["usage"]["total_tokens"] <= 40


def test_a_fault_is_one_line_for_the_client(models, monkeypatch, caplog):
    monkeypatch.setattr(replies, "_generate", lambda *_: 1 / 0)
    with client_of(models) as client:
        check_error(client.post(PATH, json=PLAIN), 500, "a fault in the server")
        assert 'data: {"error":' in client.post(PATH, json={**PLAIN, "stream": True}).text
    assert "ZeroDivisionError" in caplog.text


# ---------------------------------------------------------------------------------------------------------- a queue


class Held:
    """Generation that waits until it is let go, and notes how many answers are made together."""

    def __init__(self, monkeypatch):
        self.sizes, self.free, make = [], asyncio.Event(), dispatcher.make

        def held(models, batch):
            self.sizes.append(len(batch))
            while not self.is_free and not all(reply.is_cancelled for reply in batch):
                time.sleep(0.01)
            make(models, batch)

        self.is_free = False
        monkeypatch.setattr(dispatcher, "make", held)


async def post(client, body):
    return await client.post(PATH, json=body, timeout=30)


def in_loop(models, scenario, **settings):
    """Run a scenario with an asynchronous client."""
    import httpx

    async def run():
        app = make_app(models, ServeConfig(**{"max_new_tokens": 12, "device": "cpu", **settings}))
        transport = httpx.ASGITransport(app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                await scenario(client, app.state.dispatcher)
        finally:
            await asyncio.to_thread(app.state.dispatcher.close)

    asyncio.run(run())


async def until(condition):
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


def test_requests_that_wait_are_answered_together_and_too_many_are_refused(models, monkeypatch):
    held = Held(monkeypatch)
    texts = ["云", "云川岭溪泉", "川", "岭溪", "泉峰湖", "岛"]

    async def scenario(client, dispatcher):
        tasks = []
        for i, text in enumerate(texts):
            body = {**PLAIN, "model": "prompt" if i == 5 else "lora", "messages": [{"role": "user", "content": text}]}
            tasks.append(asyncio.create_task(post(client, body)))
            await until(lambda count=i: len(dispatcher.waiting) == count and dispatcher.at_work)
        check_error(await post(client, PLAIN), 429, "5 requests are waiting")
        held.is_free = True
        for i, task in enumerate(tasks):
            name, message = "prompt" if i == 5 else "lora", {"role": "user", "content": texts[i]}
            expected = answer_of(models, name, [message], max_new_tokens=12)
            assert (await task).json()["choices"][0]["message"]["content"] == expected

    in_loop(models, scenario, max_queue=5, max_batch_size=3)
    assert held.sizes == [1, 3, 1, 1]


def test_a_client_that_goes_away_stops_its_answer(models, monkeypatch):
    """As a server tells the application: with a message instead of a body."""
    made = []
    monkeypatch.setattr(type(models["taught"].tokenizer), "stop_ids", [-1])  # the answer has no end

    async def scenario(client, dispatcher):
        app = client._transport.app
        gone = asyncio.Event()
        sent = [{"type": "http.request", "body": json.dumps({**PLAIN, "max_tokens": 8000}).encode()}]

        async def receive():
            if sent:
                return sent.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b"", "app": app}
        task = asyncio.create_task(app({**scope, "http_version": "1.1", "scheme": "http"}, receive, send))
        await until(lambda: dispatcher.at_work and len(dispatcher.at_work[0].ids) > 3)
        made.extend(dispatcher.at_work)
        gone.set()
        await task

    in_loop(models, scenario)
    assert made[0].finish_reason == "cancelled"
    assert len(made[0].ids) < 8000
