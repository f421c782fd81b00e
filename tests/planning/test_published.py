import re
from pathlib import Path

import pytest

from glmft.cli import main
from glmft.planning.published import ROWS, run_of, table

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["plan.md", "plan_zh.md"])
def test_the_page_shows_the_table_that_the_command_prints(page):
    assert table() in (DOCS / page).read_text(encoding="utf-8")


def test_four_bits_of_chatglm_6b_take_what_is_published():
    """6.7 GB, P-Tuning over INT4; glmft keeps no logits and no padding."""
    [row] = [row for row in ROWS if row.published == 6.7]
    assert 0.75 * 6.7 < run_of(row).memory.peak / 2**30 + 1 < 6.7


def test_every_published_setting_can_be_planned():
    assert len(ROWS) == 35
    assert all(run_of(row).setting.numbers > 0 for row in ROWS)


@pytest.mark.parametrize("page", ["plan.md", "plan_zh.md"])
def test_the_page_shows_what_its_commands_print(page, capsys):
    text = (DOCS / page).read_text(encoding="utf-8")
    shown = re.findall(r"```text\n\$ glmft (.*)\n((?:.*\n)+?)```", text)
    assert len(shown) == 2
    for command, lines in shown:
        assert main(command.split()) == 0
        assert lines.strip() in capsys.readouterr().out
