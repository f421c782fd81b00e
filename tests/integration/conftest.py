import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def uneven(tmp_path_factory) -> Path:
    """Ten records whose answers differ much in length, so that a mean of means would show."""
    path = tmp_path_factory.mktemp("data") / "uneven.json"
    lengths = [1, 30, 2, 40, 3, 9, 1, 25, 4, 60]
    rows = [
        {"instruction": "请复述：", "input": "云川" * (n % 7 + 1), "output": ("云川岭溪泉峰" * n)[:n]} for n in lengths
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
