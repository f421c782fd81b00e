"""The page in a real browser, as wide as a desk's and as a phone's."""

from itertools import pairwise

import pytest
from browser import DESK, PHONE, WATCH, Visit, driven, end, executable, start
from folders import QUESTION, make_predictions, make_run

pytest.importorskip("playwright", reason="needs playwright, which make test-slow brings where a browser is installed")
pytest.importorskip("gradio", reason='the page needs gradio: pip install "glmft[web]"')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="no browser is installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def chromium():
    with driven() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(web_config, workplace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    arguments = [*web_config.paths, "--output_root", web_config.output_root, "--data_path", web_config.data_path]
    server, address = start([*arguments, "--max_new_tokens", "24", "--dtype", "fp32"], folder)
    yield address
    end(server)
    assert "Traceback" not in (folder / "web-errors.txt").read_text()


@pytest.fixture
def visit(chromium, address):
    visits = []

    def begin(*args, **kwargs) -> Visit:
        visits.append(Visit(chromium, address, *args, **kwargs))
        return visits[-1]

    yield begin
    for visited in visits:
        visited.context.close()
        assert visited.wrong == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_words_arrive_one_after_the_other_and_two_models_are_compared(visit, size):
    here = visit(size)
    here.page.evaluate(WATCH)
    here.ask(QUESTION)
    here.wait_for(here.is_answered)
    shown = here.page.evaluate("window.shown")
    for column in (0, 1):
        texts = list(dict.fromkeys(state[column] for state in shown if state[column] not in ("", "…")))
        assert len(texts) > 1 + column  # the base has but a few words to say
        assert all(later.startswith(text) for text, later in pairwise(texts[:3]))
    first, second = here.boxes()
    assert first != second
    assert here.fits()


def test_an_answer_is_stopped_asked_for_again_changed_and_taken_back(visit):
    here = visit()
    here.page.get_by_text("How it answers").click()
    longest = here.page.get_by_label("Longest answer (tokens)")
    longest.fill("2000")
    longest.press("Tab")
    here.page.locator("#models label").first.click()  # the base alone ends of its own accord
    here.ask(QUESTION)
    here.page.locator("#stop").click()
    here.wait_for(here.is_answered)
    assert "(stopped)" in here.boxes()[0]
    longest.fill("8")
    longest.press("Tab")
    here.page.click("#retry")
    here.wait_for(lambda: "cut at 8 tokens" in here.boxes()[0])
    here.page.locator(".g-chat:visible button[title=Edit]").first.click()
    here.page.locator(".g-chat:visible textarea").fill("云<b>川</b>")
    here.page.locator(".g-chat:visible button[title=Submit]").first.click()
    here.wait_for(lambda: here.page.locator(".g-chat:visible .user.message").inner_text().strip() == "云<b>川</b>")
    here.wait_for(here.is_answered)
    here.page.click("#undo")
    here.wait_for(lambda: here.page.input_value("#question textarea") == "云<b>川</b>")
    assert here.page.locator(".g-chat:visible .message").count() == 0


def test_a_conversation_goes_on_and_shows_its_tokens(visit):
    here = visit()
    for question in (QUESTION, "云川"):
        here.ask(question)
        here.wait_for(
            lambda text=question: here.page.locator(".g-chat:visible .user.message", has_text=text).count() == 2
        )
        here.wait_for(here.is_answered)
    here.page.get_by_text("The tokens as the model saw them").click()
    here.page.click("#show-tokens")
    here.wait_for(lambda: here.page.locator("#tokens .g-flow").count() == 2)
    special = here.page.locator("#tokens .g-flow").first.locator(".g-special").all_inner_texts()
    assert special[:2] == ["[gMASK]", "sop"]


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_tabs_of_data_runs_and_predictions_show_what_is_there(visit, size):
    here = visit(size)
    here.open(1)
    here.wait_for(lambda: here.page.locator("#record .g-flow .g-learned").count() > 2)
    here.page.fill("#data-record input", "1")
    here.page.press("#data-record input", "Enter")
    here.wait_for(lambda: "two.json:2" in here.page.locator("#record").inner_text())
    here.page.fill("#data-record input", "7")
    here.page.press("#data-record input", "Enter")
    here.wait_for(lambda: "the last one is 1" in here.page.locator("#record").inner_text())
    assert here.fits()
    here.open(2)
    here.wait_for(lambda: "step 5 of 8" in here.page.locator("#run-state").inner_text())
    here.wait_for(lambda: here.page.locator("canvas:visible, svg.marks:visible").count() >= 5)
    assert "lora_A: 4 x [8, 128]" in here.page.locator("#trained").inner_text()
    assert here.fits()
    here.open(3)
    cell = here.page.get_by_text("丙_是_戊").locator("visible=true").first
    cell.click()
    here.wait_for(lambda: "抽取：云1" in here.page.locator("#prediction").inner_text())
    assert here.fits()


def test_a_running_run_is_drawn_as_it_goes_on_and_a_new_one_is_found(visit, workplace):
    here = visit()
    here.open(2)
    here.wait_for(lambda: "step 5 of 8" in here.page.locator("#run-state").inner_text())
    with (workplace / "output" / "first" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.123}\n')
    here.wait_for(lambda: "step 6 of 8" in here.page.locator("#run-state").inner_text(), 15)
    assert "0.123" in here.page.locator("#run-state").inner_text()
    make_run(workplace / "output" / "later", steps=7)
    here.page.click("#run-refresh")
    here.page.click("#run-folder input")
    here.page.get_by_role("option", name="later").click()
    here.wait_for(lambda: "step 7 of 8" in here.page.locator("#run-state").inner_text())


def test_the_language_is_the_browser_s_and_can_be_changed(visit):
    here = visit(locale="zh-CN")
    assert here.page.locator("#send").inner_text() == "发送"
    here.page.click("#language")
    here.page.wait_for_selector("#send:has-text('Send')")
    assert here.page.url.endswith("/en/")
    here.page.click("#language")
    here.page.wait_for_selector("#send:has-text('发送')")
    assert visit(locale="de-DE").page.locator("#send").inner_text() == "Send"


def test_a_model_that_fails_to_load_is_named_in_a_sentence(visit):
    assert "no-such-model: no such folder" in visit().page.locator(".g-bad").first.inner_text()


def test_a_lost_connection_is_a_sentence(chromium, web_config, tmp_path):
    make_predictions(tmp_path / "output" / "predict", [("云", "云")])
    server, address = start(["--output_root", str(tmp_path / "output"), "--language", "zh"], tmp_path)
    here = Visit(chromium, address)
    assert here.page.url.endswith("/zh/")
    end(server)
    here.page.fill("#question textarea", "云")
    here.page.click("#send")
    here.page.get_by_text("Connection to the server was lost").first.wait_for()  # of gradio, which has no Chinese one
    here.context.close()


def test_whoever_does_not_know_the_key_sees_nothing(chromium, tmp_path):
    server, address = start(["--api_key", "open-sesame", "--output_root", str(tmp_path)], tmp_path)
    try:
        for key, status in (("wrong", 401), ("open-sesame", 200)):
            context = chromium.new_context(http_credentials={"username": "me", "password": key})
            page = context.new_page()
            assert page.goto(address).status == status
            if status == 200:
                page.fill("#question textarea", "云")
                page.click("#send")
                page.locator(".bot.message").first.wait_for()
            context.close()
    finally:
        end(server)
