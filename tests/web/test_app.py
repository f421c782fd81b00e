"""The whole page through its ASGI application."""

import json
import re
import socket

import pytest

pytest.importorskip("gradio", reason='the page needs gradio: pip install "glmft[web]"')
from folders import QUESTION, SECRET
from starlette.testclient import TestClient

import glmft
from glmft.web.app import make_app
from glmft.web.drawing import as_markdown
from glmft.web.words import WORDS

ROUTES = ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "gradio_api/proxy=file://")


class Page:
    """What a browser does with the page, by the elements' ids."""

    def __init__(self, client: TestClient, language: str):
        self.client, self.root = client, f"/{language}"
        self.config = client.get(f"{self.root}/config").json()
        self.ids = {c["props"].get("elem_id"): c["id"] for c in self.config["components"]}

    def label(self, number: int) -> str | None:
        return next(c["props"].get("label") for c in self.config["components"] if c["id"] == number)

    def handler(self, element: str, event: str) -> dict:
        return next(d for d in self.config["dependencies"] if [self.ids[element], event] in d["targets"])

    def call(self, handler: dict, data: list, session: str = "s1") -> list[dict]:
        """All that an event sends back."""
        request = {
            "data": data,
            "fn_index": handler["id"],
            "session_hash": session,
            "trigger_id": 1,
            "event_data": None,
        }
        joined = self.client.post(f"{self.root}/gradio_api/queue/join", json=request)
        assert joined.status_code == 200, joined.text
        stream = self.client.get(f"{self.root}/gradio_api/queue/data", params={"session_hash": session})
        lines = [json.loads(line[5:]) for line in stream.text.splitlines() if line.startswith("data:")]
        return [line for line in lines if line["msg"] in ("process_generating", "process_completed")]


@pytest.fixture(scope="module")
def client(web_config, models):
    with TestClient(make_app(web_config, models), base_url="http://127.0.0.1:7860") as client:
        yield client


def values_of(page: Page, handler: dict, **given) -> list:
    """What the inputs of an event hold when the page is new; `given` replaces the values of elements."""
    components = {c["id"]: c["props"] for c in page.config["components"]}
    named = {page.ids[name.replace("_", "-")]: value for name, value in given.items()}
    return [named.get(i, components[i].get("value")) for i in handler["inputs"]]


def test_the_first_visit_leads_to_the_browser_s_language(client):
    for header, language in (("zh-CN,zh;q=0.9", "zh"), ("en-US", "en")):
        answer = client.get("/", headers={"accept-language": header}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, f"/{language}/")


@pytest.mark.parametrize(("language", "column"), [("en", 0), ("zh", 1)])
def test_the_page_is_there_in_both_languages_and_names_the_model_that_could_not_be_opened(client, language, column):
    text = client.get(f"/{language}/").text
    config = client.get(f"/{language}/config").text
    for name in ("chat", "data", "run", "predictions", "send", "what_trains", "lengths"):
        shown = WORDS[name][column]
        assert shown in config or json.dumps(shown)[1:-1] in config or name == "what_trains", name
    assert "no-such-model: no such folder" in config
    assert "google" not in text
    assert not re.search(r'<(?:script|link)[^>]*(?:src|href)="?https?:', text)


def test_a_question_is_answered_word_by_word_by_both_models_as_predict_answers(client, models):
    page = Page(client, "en")
    handler = page.handler("send", "click")
    events = page.call(handler, values_of(page, handler, question=QUESTION))
    assert len(events) > 5
    assert events[-1]["msg"] == "process_completed"
    boxes = {page.label(number): place for place, number in enumerate(handler["outputs"])}
    for name in models.names:
        with models.at_work(name) as (model, tokenizer):
            expected = glmft.answer(model, tokenizer, [QUESTION], max_new_tokens=24)[0]
        question, answer = events[-1]["output"]["data"][boxes[name]]
        assert question["content"][0]["text"] == as_markdown(QUESTION)
        assert answer["content"][0]["text"].startswith(as_markdown(expected))
    assert all(event["success"] for event in events)


def test_what_is_wrong_comes_as_a_sentence_and_never_as_a_stack(client):
    page = Page(client, "zh")
    handler = page.handler("send", "click")
    for given in ({"question": "   "}, {"question": "云", "models": []}):
        last = page.call(handler, values_of(page, handler, **given), "s2")[-1]
        text = json.dumps(last, ensure_ascii=False)
        assert "未能完成" in text
        assert "Traceback" not in text
    last = page.call(handler, values_of(page, handler, question="云", models=["none"]), "s3")[-1]
    assert not last["success"]
    assert "Traceback" not in json.dumps(last)


def test_no_file_of_a_run_can_be_fetched_and_no_other_one(client, workplace):
    run = workplace / "output" / "first" / "train_config.json"
    for path in (run, workplace / "secret.txt", "/etc/passwd", "../../secret.txt", f"{run.parent}/../../../secret.txt"):
        for route in ROUTES:
            answer = client.get(f"/en/{route}{path}")
            assert answer.status_code == 404, (route, path)
            assert SECRET not in answer.text
            assert "train_type" not in answer.text


def test_a_run_folder_that_the_page_does_not_list_is_not_opened(client, workplace):
    page = Page(client, "en")
    for element, hostile in (("run-folder", "../"), ("run-folder", str(workplace)), ("data-file", "../secret.json"),
                             ("prediction-folder", "../output/first/predict")):  # fmt: skip
        handler = page.handler(element, "change")
        good = page.call(handler, values_of(page, handler), "s4")[-1]
        assert good["success"]
        bad = page.call(handler, values_of(page, handler, **{element.replace("-", "_"): hostile}), "s4")[-1]
        assert not bad["success"]
        assert SECRET not in json.dumps(bad)


def test_nothing_is_looked_up_in_the_network(web_config, models, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host))
    with TestClient(make_app(web_config, models), base_url="http://127.0.0.1:7860") as client:
        assert client.get("/en/").status_code == 200
    assert asked == []
