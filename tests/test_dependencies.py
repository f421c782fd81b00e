"""Who may import whom, as the architecture says: a level knows the levels below it and its own room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "glmft"
LEVELS = [
    {"errors"},
    {"family", "dist"},
    {"config", "sources"},
    {
        "arguments",
        "checks",
        "ds_config",
        "optim",
        "metrics",
        "signals",
        "weights",
        "failures",
        "planning",
        "yaml_config",
    },
    {"models", "tokenizers", "data"},
    {"tuners"},
    {"zero_state", "checkpoint", "tracking", "loading"},
    {"generation", "merge", "job"},
    {"evaluation", "divergence"},
    {"engine"},
    {"run"},
    {"cli"},
    {"auto", "__init__", "__main__"},
]
ROOMS = ("models", "tokenizers", "data")
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_levels_below(path):
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "glmft" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        other = parts[1] if any(parts[1] in names for names in LEVELS) else "__init__"
        assert other == own or level(other) <= level(own), f"{own} imports {name}"
        assert not (own in ROOMS and other in ROOMS and own != other), f"{own} and {other} know each other"


def users(module: str) -> set[str]:
    return {str(p.relative_to(PACKAGE)) for p in FILES if any(n.split(".")[0] == module for n in imports(p))}


def test_deepspeed_is_imported_in_four_places():
    assert users("deepspeed") == {"engine.py", "dist.py", "zero_state.py", "models/partitioned.py"}


def test_arguments_are_parsed_in_one_place():
    assert users("argparse") == {"arguments.py"}


def test_the_environment_is_read_in_one_place():
    readers = {str(p.relative_to(PACKAGE)) for p in FILES if "os.environ" in p.read_text(encoding="utf-8")}
    assert readers == {"dist.py"}


def test_no_pickle_is_loaded_with_code_in_it_and_no_remote_code_runs():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        assert "trust_remote_code" not in text, path
        assert "import pickle" not in text, path


def test_importing_the_package_imports_nothing_heavy():
    code = "import glmft, sys; assert not {'torch', 'transformers', 'deepspeed', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
