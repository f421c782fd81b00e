"""docs/design.md names functions; they exist."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"\bglmft(?:\.\w+)+", PAGE)))


def resolve(name: str) -> object:
    """The module, class or function behind a dotted name; raises AttributeError or ModuleNotFoundError."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_page_exists(name):
    assert resolve(name) is not None


def test_the_page_names_the_way_of_a_batch_a_flag_a_checkpoint_and_a_resume():
    assert len(NAMES) > 40
    for way in ("one batch", "one flag", "a checkpoint", "a resume"):
        assert f"## The way of {way}" in PAGE
