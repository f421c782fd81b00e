"""Rows that are longer than the model was built for."""

import pytest

from glmft.commands.rows import beyond_the_model
from glmft.settings.config import TrainConfig


@pytest.mark.parametrize(
    ("given", "lengths", "built_for", "part"),
    [
        ({}, [10, 900], 512, "--max_len) are allowed, but the model was built for 512 (seq_length); 1 of 2 rows"),
        ({}, [10, 500], 512, None),
        ({"max_len": 600}, [10, 500], 512, "rows of up to 600 tokens (--max_len)"),
        ({"max_len": 512}, [10, 512], 512, None),
        (
            {"max_source_length": 500, "max_target_length": 500},
            [10],
            512,
            "rows of up to 1001 tokens (--max_source_len",
        ),
        ({"max_len": 600}, [10, 599], None, None),
    ],
)
def test_a_warning_where_rows_or_an_asked_length_go_beyond(given, lengths, built_for, part):
    lines = beyond_the_model(TrainConfig(**given), lengths, "glm2", built_for)
    assert len(lines) == (part is not None)
    assert all(part in line and line.startswith("warning: ") for line in lines)
