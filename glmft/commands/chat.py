"""`glmft chat`: talk with models in the terminal, or line by line through a pipe."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from glmft.commands.chat_commands import HELP, SLASH_COMMANDS, Leave, run_command
from glmft.commands.quiet import quiet
from glmft.commands.talk import Talk
from glmft.errors import ConfigError, GlmftError, printable, shown
from glmft.inference.model_set import open_models
from glmft.inference.replies import Reply, stream
from glmft.inference.tool_calls import shown_calls
from glmft.settings.checks import is_unicode
from glmft.settings.talk import ChatConfig

LONGEST_LINE = 4 << 20  # bytes


def chat(config: ChatConfig) -> int:
    """Read questions and commands, print answers, until there are no more; 2 if one of a pipe could not be answered.

    Raises:
        GlmftError: settings or models that cannot be used.
    """
    if problems := config.problems():
        raise ConfigError(problems)
    quiet()
    models = open_models(config.all_paths, config)
    talk = Talk(models, config.sampling, config.history)
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(f"{', '.join(models.names)}. {HELP}", flush=True)
        with stopping_answers_only():
            in_terminal(talk)
        return 0
    return through_pipe(talk)


def in_terminal(talk: Talk) -> None:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.shortcuts import CompleteStyle

    completer = WordCompleter(list(SLASH_COMMANDS), sentence=True)
    session: PromptSession = PromptSession(completer=completer, complete_style=CompleteStyle.READLINE_LIKE)
    while True:
        talk.was_answering = False
        try:
            line = session.prompt(f"{talk.label}> ").strip()
            if line:
                print_lines(handle(talk, line, typing=True))
        except KeyboardInterrupt:
            print("(stopped; Ctrl-D leaves)" if talk.was_answering else "(Ctrl-D leaves)", flush=True)
        except (EOFError, Leave):
            return
        except GlmftError as error:
            print_lines(shown(error.problems))


def through_pipe(talk: Talk) -> int:
    """Each line's answer, or what is wrong with it on standard error."""
    code = 0
    for line in piped_lines():
        try:
            if not is_unicode(line):
                raise ConfigError("a line of standard input is not UTF-8")
            notes = handle(talk, line, typing=False)
            print_lines(notes, sys.stderr)
        except Leave:
            break
        except GlmftError as error:
            print_lines(shown(error.problems), sys.stderr)
            code = error.exit_code
    return code


def piped_lines() -> Iterator[str]:
    """Lines of standard input that are not empty. Raises ConfigError for one beyond all bounds."""
    while data := sys.stdin.buffer.readline(LONGEST_LINE):
        if len(data) >= LONGEST_LINE:
            raise ConfigError(f"a line of standard input is longer than {LONGEST_LINE:,} bytes")
        if line := data.decode("utf-8", "surrogateescape").strip("\ufeff\r\n\t "):
            yield line


def handle(talk: Talk, line: str, typing: bool) -> list[str]:
    """Run a command, which gives lines to print, or have a question answered."""
    if line.startswith("/"):
        return run_command(talk, line)
    if "\0" in line or not is_unicode(line):
        raise ConfigError("the question holds a NUL byte, or bytes that are no UTF-8")
    notes = []
    for name in talk.asked:
        reply, note = talk.ask(name, line)
        notes += [note] if note else []
        if len(talk.asked) > 1:
            print(f"[{name}]", end="\n" if typing else " ", flush=True)
        notes += answered(talk, name, line, reply, typing)
    return notes


def answered(talk: Talk, name: str, question: str, reply: Reply, typing: bool) -> list[str]:
    """Print an answer as it comes (through a pipe, once it is whole), and take it into the conversation."""
    talk.was_answering, printed = True, ""
    try:
        for text in stream(talk.models, reply):
            if typing:
                print(harmless(text[len(printed) :]), end="", flush=True)
            printed = text
    finally:
        print("" if typing else printed, flush=True)
        messages = talk.keep(name, question, reply)
    notes = [f"-> {call}" for call in shown_calls(messages)]
    if reply.finish_reason == "length":
        notes.append(f"(cut at {len(reply.ids)} tokens; see --max_new_tokens)")
    if not reply.text and reply.finish_reason == "stop":
        notes.append("(an empty answer)")
    return notes


def harmless(text: str) -> str:
    """A text in which nothing is a command to the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else printable(c) for c in text)


def print_lines(lines: list[str], file: Any = None) -> None:
    for line in lines:
        print(line, file=file, flush=True)


@contextlib.contextmanager
def stopping_answers_only() -> Iterator[None]:
    """Ctrl-C interrupts what is going on, and is not the end of the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
