import io
import os
import subprocess
import sys

import pytest

from glmft.console import LastingStream, lasting_output, say


class Refusing(io.StringIO):
    """A stream that raises an error a few times."""

    def __init__(self, error: OSError, times: int):
        super().__init__()
        self.error, self.times = error, times

    def write(self, text: str) -> int:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return super().write(text)


def test_a_full_disk_costs_lines_and_the_next_one_is_tried():
    stream = Refusing(OSError(28, "No space left on device"), 2)
    for number in range(4):
        LastingStream(stream).write(f"{number} ")
    assert stream.getvalue() == "2 3 "


@pytest.mark.parametrize("charset", ["ascii", "gbk", "utf-8"])
def test_what_a_character_set_lacks_is_escaped(charset):
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, charset))
    stream.write("云\U0001f600\ud800.")
    stream.flush()
    assert raw.getvalue().endswith(b"\\ud800.")


def test_a_stream_that_was_closed_before_is_none():
    stream = LastingStream(None)
    stream.write("lost")
    stream.flush()
    assert not stream.isatty()


def test_streams_are_wrapped_once_and_put_back(capsys):
    before = sys.stdout, sys.stderr
    with lasting_output():
        inner = sys.stdout
        with lasting_output():
            assert sys.stdout is inner
        say(["line"])
        assert sys.stdout is inner
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "line\n"


CLOSED = {
    "reader gone": '"{python}" -m glmft {argv} | true; exit ${{PIPESTATUS[0]}}',
    "both gone": '"{python}" -m glmft {argv} 2>&1 | true; exit ${{PIPESTATUS[0]}}',
    "closed": '"{python}" -m glmft {argv} >&- 2>&-',
    "full": '"{python}" -m glmft {argv} >/dev/full 2>/dev/full',
    "ascii": 'PYTHONIOENCODING=ascii "{python}" -m glmft {argv} >/dev/null',
}


@pytest.mark.parametrize("how", CLOSED)
@pytest.mark.parametrize(("argv", "code"), [("--help", 0), ("predict --model_name_or_path nowhere", 2)])
def test_a_command_ends_with_its_own_code_whatever_becomes_of_its_output(how, argv, code):
    line = CLOSED[how].format(python=sys.executable, argv=argv)
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ)
    assert result.returncode == code
    assert "Exception" not in result.stderr
    assert "Traceback" not in result.stderr
