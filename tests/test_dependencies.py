"""Who may import whom, as the architecture says: a level knows the levels below it and its own room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "glmft"
LEVELS = [
    {"errors", "reading", "schema", "console", "files", "device", "dist", "elsewhere", "family", "weights"},
    {"settings"},
    {"planning"},
    {"models", "tokenizers", "data"},
    {"tuners"},
    {"inference"},
    {"serving"},
    {"training"},
    {"engine"},
    {"commands"},
    {"web"},
    {"cli"},
    {"auto", "__init__", "__main__"},
]
SIDE_BY_SIDE = ("models", "tokenizers", "data")  # rooms of one level that do not know each other
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


def module(path: Path) -> str:
    return ".".join(("glmft", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_of(path: Path) -> set[str]:
    """The package's own modules that a file imports, but for `glmft` itself, which hands out names of all levels."""
    names = {name if name in MODULES else name.rpartition(".")[0] for name in imports(path)}
    return names & MODULES.keys() - {"glmft"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_levels_below(path):
    here = room(path)
    for name in modules_of(path):
        other = name.split(".")[1]
        assert level(other) <= level(here), f"{here} imports {name}"
        assert not (here in SIDE_BY_SIDE and other in SIDE_BY_SIDE and here != other), f"{here} and {other} meet"


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """The modules of one circle of imports, in order; None if there is none."""
    finished: set[str] = set()

    def walk(name: str, above: list[str]) -> list[str] | None:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in finished:
            return None
        met = next((c for other in sorted(graph[name]) if (c := walk(other, [*above, name]))), None)
        finished.add(name)
        return met

    return next((c for name in sorted(graph) if (c := walk(name, []))), None)


def test_no_modules_import_each_other_in_a_circle():
    assert circle({name: modules_of(path) for name, path in MODULES.items()}) is None


def test_a_circle_is_found_inside_a_level_too():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]


def users(module: str) -> set[str]:
    return {str(p.relative_to(PACKAGE)) for p in FILES if any(n.split(".")[0] == module for n in imports(p))}


def test_deepspeed_is_imported_in_six_places():
    places = {"engine.py", "dist.py", "training/zero_state.py", "training/ds_sections.py", "models/partitioned.py"}
    places |= {"training/pipeline.py"}
    assert users("deepspeed") == places


def test_arguments_are_parsed_in_one_place():
    assert users("argparse") == {"settings/flags.py"}


def test_the_environment_is_read_in_one_place():
    readers = {str(p.relative_to(PACKAGE)) for p in FILES if "os.environ" in p.read_text(encoding="utf-8")}
    assert readers == {"dist.py"}


def test_no_pickle_is_loaded_with_code_in_it_and_no_remote_code_runs():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("torch.load(") == text.count("weights_only=True"), path
        assert "trust_remote_code=" not in text, path
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
