"""The tab of the chat: one question, the chosen models' answers side by side, word by word."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from glmft.errors import ConfigError
from glmft.inference.sampling import TOP_K
from glmft.settings.checks import range_problems
from glmft.web import drawing
from glmft.web.conversation import Answer, Conversation, Manner, answered, knows_tools, read_tools, tokens_of
from glmft.web.site import Site, sentence
from glmft.web.words import Say

SAMPLING = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
COMPARED = 2  # models that answer at the start
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class ChatTab:
    """The components, and what happens on them."""

    def __init__(self, page: gr.Blocks, site: Site, say: Say):
        self.site, self.say, self.names = site, say, site.models.names
        refused = [f"{path}: {'; '.join(lines)}" for path, lines in site.models.refused.items()]
        if refused:
            gr.HTML(drawing.note(f"{say('unopened')}: {' · '.join(refused)}", "bad"))
        if not self.names:
            gr.HTML(drawing.note(say("no_models")))
            return
        self.lay_out()
        self.connect(page)

    def lay_out(self) -> None:
        say, several = self.say, len(self.names) > 1
        self.chosen = gr.CheckboxGroup(
            self.names, value=self.names[:COMPARED], label=say("models"), visible=several, elem_id="models"
        )
        with gr.Row(equal_height=True):
            self.boxes = [self._box(name, i < COMPARED) for i, name in enumerate(self.names)]
        self.problem = gr.HTML(elem_id="chat-problem")
        with gr.Row(elem_classes="g-controls"):
            self.text = gr.Textbox(
                placeholder=say("question"), show_label=False, lines=1, max_lines=8, scale=8, elem_id="question",
                max_length=self.site.longest_message, autofocus=True, container=False,
            )  # fmt: skip
            self.send = gr.Button(say("send"), variant="primary", scale=1, min_width=90, elem_id="send")
            self.halt = gr.Button(say("stop"), variant="stop", scale=1, min_width=90, visible=False, elem_id="stop")
        with gr.Row():
            self.retry = gr.Button(say("retry"), size="sm", min_width=90, elem_id="retry")
            self.undo = gr.Button(say("undo"), size="sm", min_width=90, elem_id="undo")
            self.clear = gr.Button(say("clear"), size="sm", min_width=90, elem_id="clear")
        with gr.Accordion(say("settings"), open=False):
            self._settings()
        with gr.Accordion(say("tokens_view"), open=False, elem_id="tokens-view"):
            self.look = gr.Button(say("show_tokens"), size="sm", elem_id="show-tokens")
            self.tokens = gr.HTML(elem_id="tokens")
        self.conversation, self.stop = gr.State(None), gr.State(None)

    def _box(self, name: str, visible: bool) -> gr.Chatbot:
        return gr.Chatbot(
            label=name, visible=visible, min_width=320, height="min(58vh, 560px)", editable="user", layout="bubble",
            placeholder=self.say("empty_chat"), buttons=["copy"], elem_classes="g-chat", allow_tags=False,
            feedback_options=None, allow_file_downloads=False,
        )  # fmt: skip

    def _settings(self) -> None:
        say, given = self.say, self.site.sampling
        self.system = gr.Textbox(label=say("system"), info=say("system_hint"), lines=2, elem_id="system")
        knows = any(knows_tools(self.site.models[name]) for name in self.names)
        self.tools = gr.Code(label=say("tools"), language="json", lines=4, visible=knows, elem_id="tools")
        with gr.Row():
            self.sampling = [
                gr.Number(given.max_new_tokens, label=say("max_new_tokens"), precision=0, min_width=130),
                gr.Checkbox(given.do_sample, label=say("do_sample"), min_width=130),
                gr.Number(given.temperature or 0, label=say("temperature"), min_width=130),
                gr.Number(given.top_p or 0, label=say("top_p"), min_width=130),
                gr.Number(
                    TOP_K if given.top_k is None else given.top_k, label=say("top_k"), precision=0, min_width=130
                ),
                gr.Number(given.repetition_penalty, label=say("repetition_penalty"), min_width=130),
                gr.Number(given.seed, label=say("seed"), precision=0, min_width=130),
            ]

    def connect(self, page: gr.Blocks) -> None:
        """What happens when."""
        how = [self.conversation, self.chosen, self.system, self.tools, *self.sampling]
        out = [self.conversation, *self.boxes, self.problem, self.text, self.send, self.halt]
        gr.on([self.send.click, self.text.submit], self.on_send, [self.text, *how], out, **QUIET)
        self.retry.click(self.on_retry, how, out, **QUIET)
        for name, box in zip(self.names, self.boxes, strict=True):
            box.edit(self.editing(name), how, out, **QUIET)
        self.undo.click(self.on_undo, self.conversation, out, **QUIET)
        # A box's own bin empties the whole conversation: it is one.
        gr.on([self.clear.click, *(box.clear for box in self.boxes)], self.on_clear, self.conversation, out, **QUIET)
        self.halt.click(self.on_stop, None, None, queue=False, **QUIET)
        self.chosen.change(
            lambda chosen: [gr.Chatbot(visible=name in chosen) for name in self.names], self.chosen, self.boxes, **QUIET
        )
        self.look.click(self.on_look, [self.conversation, self.chosen], self.tokens, **QUIET)
        page.unload(self.on_stop)

    # ------------------------------------------------------------------------------------------------ what happens

    def is_busy(self, request: gr.Request) -> bool:
        return request.session_hash in self.site.stops

    def on_send(self, request: gr.Request, text: str, talk: Conversation | None, *how: Any) -> Iterator:
        if self.is_busy(request):
            yield self._refusal()
            return
        talk = talk or Conversation()
        try:
            if not text.strip():
                raise ConfigError(self.say("empty_question"))
            number = talk.ask(self._checked(text))
        except Exception as error:
            yield self._state(talk, sentence(error, self.say))
            return
        yield from self._answers(talk, number, request, *how, text="")

    def on_retry(self, request: gr.Request, talk: Conversation | None, *how: Any) -> Iterator:
        if self.is_busy(request):
            yield self._refusal()
        elif not talk or not talk.turns:
            yield self._state(talk, self.say("nothing_yet"))
        else:
            talk.turns[-1].tries += 1
            yield from self._answers(talk, len(talk.turns) - 1, request, *how)

    def editing(self, name: str) -> Callable[..., Iterator]:
        """What happens when a question is changed in a model's box: all chosen models answer the new one."""

        def on_edit(event: gr.EditData, request: gr.Request, talk: Conversation | None, *how: Any) -> Iterator:
            if self.is_busy(request):
                yield self._refusal()
                return
            try:
                place = event.index[0] if isinstance(event.index, list | tuple) else event.index
                number = talk.turns_of(name)[place // 2]
                talk.change(number, self._checked(drawing.from_markdown(str(event.value))))
            except (AttributeError, IndexError, TypeError):
                yield self._state(talk, self.say("nothing_yet"))
                return
            except Exception as error:
                yield self._state(talk, sentence(error, self.say))
                return
            yield from self._answers(talk, number, request, *how)

        return on_edit

    def on_undo(self, request: gr.Request, talk: Conversation | None) -> list:
        """Take the last question back into the box."""
        if self.is_busy(request):
            return self._refusal()
        last = talk.turns.pop() if talk and talk.turns else None
        return self._state(talk, text=last.text if last else None)

    def on_clear(self, request: gr.Request, talk: Conversation | None) -> list:
        return self._state(talk, self.say("busy")) if self.is_busy(request) else self._state(None)

    def on_stop(self, request: gr.Request) -> None:
        event = self.site.stops.get(request.session_hash)
        if event is not None:
            event.set()

    def on_look(self, talk: Conversation | None, chosen: list[str]) -> str:
        """The tokens of the newest answers."""
        for turn in reversed(talk.turns if talk else []):
            parts = [
                f'<h3 class="g-title">{drawing.plain(name)}</h3>'
                + drawing.flow(tokens_of(turn.answers[name], self.site.models[name].tokenizer))
                for name in chosen
                if name in turn.answers and turn.answers[name].prompt
            ]
            if parts:
                kinds = {"legend_answer": " g-learned", "legend_prompt": "", "legend_special": " g-special"}
                return drawing.legend(self.say, kinds) + "".join(parts)
        return drawing.note(self.say("nothing_yet"))

    # ------------------------------------------------------------------------------------------------ answers

    def _checked(self, text: str) -> str:
        if len(text) > self.site.longest_message:
            raise ConfigError(self.say("too_long").format(self.site.longest_message))
        return text.strip()

    def _answers(
        self, talk: Conversation, number: int, request: gr.Request, chosen: list[str], system: str | None,
        tools: str | None, *sampling: Any, text: str | None = None,
    ) -> Iterator:  # fmt: skip
        """The chosen models' answers to a turn, one model after the other, as they share their weights."""
        turn, stop = talk.turns[number], threading.Event()
        self.site.stops[request.session_hash] = stop
        try:
            names = [name for name in self.names if name in chosen]
            if not names:
                raise ConfigError(self.say("no_chosen"))
            manner = Manner(self._sampling(sampling), (system or "").strip(), read_tools(tools or ""))
            turn.answers |= {name: Answer() for name in names}
            yield self._state(talk, text=text, busy=True)
            for name in names:
                for _ in self._answer(talk, number, name, manner, stop):
                    yield self._state(talk, busy=True)
            yield self._state(talk)
        except Exception as error:
            if not turn.answers:
                talk.turns.remove(turn)
            yield self._state(talk, sentence(error, self.say))
        finally:
            self.site.stops.pop(request.session_hash, None)

    def _answer(
        self, talk: Conversation, number: int, name: str, manner: Manner, stop: threading.Event
    ) -> Iterator[None]:
        answers = talk.turns[number].answers
        if stop.is_set():
            answers[name] = Answer(reason="cancelled")
            return
        try:
            for _ in answered(self.site.models, name, talk, number, manner):
                yield
                if stop.is_set():
                    break
        except Exception as error:
            answers[name] = Answer(problem=sentence(error, self.say))
            yield

    def _sampling(self, values: tuple[Any, ...]) -> Any:
        given = dict(zip(SAMPLING, values, strict=True))
        own = {name: given[name] or None for name in ("temperature", "top_p")}  # none: as the model's chat() has it
        settings = replace(self.site.sampling, **(given | own))
        if problems := range_problems(settings):
            raise ConfigError(problems)
        return settings

    def _refusal(self) -> list:
        """Nothing changes while an answer is made, but for a sentence."""
        return [gr.skip(), *[gr.skip()] * len(self.boxes), drawing.note(self.say("busy"), "bad"), *[gr.skip()] * 3]

    def _state(self, talk: Conversation | None, problem: str = "", text: str | None = None, busy: bool = False) -> list:
        """All components of the tab, in their order."""
        boxes = [self._shown(talk, name) for name in self.names]
        typed = gr.skip() if text is None else text
        note = drawing.note(problem, "bad")
        return [talk, *boxes, note, typed, gr.Button(visible=not busy), gr.Button(visible=busy)]

    def _shown(self, talk: Conversation | None, name: str) -> list[dict[str, Any]]:
        """A model's side of a conversation."""
        messages: list[dict[str, Any]] = []
        for number in talk.turns_of(name) if talk else []:
            turn = talk.turns[number]
            answer = turn.answers[name]
            messages.append({"role": "user", "content": drawing.as_markdown(turn.text)})
            messages.append({"role": "assistant", "content": self._text_of(answer)})
        return messages

    def _text_of(self, answer: Answer) -> str:
        if answer.problem:
            return f"⚠ {drawing.as_markdown(answer.problem)}"
        notes = [f"`→ {call}`" for call in answer.calls]
        notes += [f"*{self.say('stopped_note')}*"] if answer.reason == "cancelled" else []
        notes += [f"*{self.say('cut_note').format(len(answer.ids))}*"] if answer.reason == "length" else []
        notes += [f"*{drawing.as_markdown(answer.note)}*"] if answer.note else []
        empty = "…" if answer.reason is None else f"*{self.say('empty_answer')}*" if answer.reason == "stop" else ""
        return "\n\n".join(part for part in (drawing.as_markdown(answer.text) or empty, *notes) if part)


def chat_tab(page: gr.Blocks, site: Site, say: Say) -> None:
    """Lay the tab out."""
    ChatTab(page, site, say)
