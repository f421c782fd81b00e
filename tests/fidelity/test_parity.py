"""The public interface against tensors, ids and texts of the official implementations, where that data is at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("model", "prefix", "generate", "tokenizer", "chat")


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("family", ["all", "glm4"])  # all: the three first generations
def test_every_golden_case_passes(family, what, shared):
    if (family, what) == ("glm4", "prefix"):
        pytest.skip("GLM-4's official code knows no prefix")
    tool = [sys.executable, str(shared / "tools" / "parity.py"), "--goldens", str(shared / "goldens"), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*tool, "--family", family, "--what", what], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
