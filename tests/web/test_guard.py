"""What is let through to the page, and what is not."""

import asyncio
import base64

import pytest

from glmft.settings.web import WebConfig
from glmft.web.guard import LARGEST, Guard

LOCAL = {"host": "127.0.0.1:7860"}


async def page(scope, receive, send):
    """Stands for gradio: takes the whole request, answers 200."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})


def ask(path="/en/", method="GET", headers=LOCAL, body=(b"",), **settings) -> tuple[int, str, dict[bytes, bytes]]:
    """Status, text and headers of the answer to one request, whose body comes in parts."""
    sent, parts = [], list(body)

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"",
             "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]}  # fmt: skip
    asyncio.run(Guard(page, WebConfig(**settings))(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode(), dict(sent[0]["headers"])


@pytest.mark.parametrize(
    "path",
    ["/", "/favicon.ico", "/en/", "/zh/", "/en", "/en/config", "/zh/theme.css", "/en/assets/index-B2.js",
     "/en/static/js/x.min.js", "/en/gradio_api/queue/join", "/zh/gradio_api/queue/data", "/en/gradio_api/heartbeat/a1"],
)  # fmt: skip
def test_the_page_s_own_routes_are_let_through(path):
    assert ask(path)[:2] == (200, "page")


@pytest.mark.parametrize(
    "path",
    ["/en/gradio_api/file=/etc/passwd", "/en/gradio_api/file=train_config.json", "/en/file=/etc/passwd",
     "/en/gradio_api/file/etc/passwd", "/en/gradio_api/proxy=http://127.0.0.1/", "/en/gradio_api/upload",
     "/en/gradio_api/call/on_send", "/en/gradio_api/run/on_send", "/en/gradio_api/api/predict", "/en/monitoring",
     "/en/gradio_api/deep_link", "/en/gradio_api/component_server", "/en/gradio_api/runs", "/en/assets/../../secret",
     "/en/static/..", "/docs", "/openapi.json", "/fr/", "/en/login", "/en/gradio_api/vibe-code", "/EN/",
     "/en/assets/%00", "/en//etc/passwd",
     "/en/gradio_api/stream/a/b/c/playlist.m3u8", "/output/run/train_config.json", "/en/robots.txt"],
)  # fmt: skip
def test_nothing_else_is_there(path):
    assert ask(path)[:2] == (404, "there is no such page\n")
    assert ask(path, "POST")[0] == 404


def test_other_methods_are_refused():
    assert ask(method="DELETE")[0] == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""])
def test_a_page_of_the_web_under_a_name_of_its_own_reaches_nothing(host):
    assert ask(headers={"host": host})[0] == 403


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST"])
def test_this_host_s_own_names_are_let_through(host):
    assert ask(headers={"host": host})[0] == 200


def test_another_site_s_requests_are_refused():
    assert ask(headers={**LOCAL, "origin": "http://evil.example"})[0] == 403
    assert ask(headers={**LOCAL, "origin": "null"})[0] == 403
    assert ask(headers={**LOCAL, "origin": "http://127.0.0.1:7860"})[0] == 200


def basic(password: str) -> dict[str, str]:
    return {**LOCAL, "authorization": "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()}


def test_with_a_key_nobody_is_let_in_without_it():
    keyed = {"api_key": "k3y", "host": "0.0.0.0"}
    status, _, headers = ask(**keyed)
    assert (status, headers[b"www-authenticate"]) == (401, b"Basic")
    for wrong in (basic("other"), basic(""), {"authorization": "Basic ???"}, {"authorization": "Bearer K3Y"},
                  {"authorization": "Digest k3y"}, {"authorization": "Basic /w=="}):  # fmt: skip
        assert ask(headers=wrong, **keyed)[0] == 401
    assert ask(headers=basic("k3y"), **keyed)[0] == 200
    assert ask(headers={"authorization": "Bearer k3y"}, **keyed)[0] == 200
    assert ask("/en/gradio_api/file=/etc/passwd", headers=basic("k3y"), **keyed)[0] == 404


def test_a_request_has_at_most_so_many_bytes_whatever_it_announces():
    join, most = "/en/gradio_api/queue/join", LARGEST
    assert ask(join, "POST", body=[b"x" * most])[0] == 200
    assert ask(join, "POST", body=[b"x" * (most // 2 + 1)] * 2)[:2] == (
        413,
        "the request is larger than 1,048,576 bytes\n",
    )
    assert ask(join, "POST", {**LOCAL, "content-length": str(most + 1)})[0] == 413
    for length in ("-1", "many", "9" * 30):
        assert ask(join, "POST", {**LOCAL, "content-length": length})[0] == 400


def test_browsers_are_told_to_fetch_nothing_from_elsewhere():
    for status, _, headers in (ask(), ask("/none")):
        assert b"default-src 'self'" in headers[b"content-security-policy"], status
        assert b"http" not in headers[b"content-security-policy"]
        assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_another_host_needs_a_key_or_the_word(host):
    assert any("--api_key" in problem for problem in WebConfig(host=host).problems())
    assert WebConfig(host=host, api_key="k").problems() == []
    assert WebConfig(host=host, insecure=True).problems() == []


def test_roots_that_are_not_there_are_a_problem(tmp_path):
    (tmp_path / "file.txt").write_text("")
    problems = WebConfig(
        data_path=f"{tmp_path}/none, {tmp_path}/file.txt", output_root=str(tmp_path / "file.txt")
    ).problems()
    assert [problem.split()[0] for problem in problems] == ["--output_root", "--data_path", "--data_path"]
    assert WebConfig(output_root=str(tmp_path / "not-yet")).problems() == []
