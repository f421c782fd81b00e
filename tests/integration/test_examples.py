"""What the project promises a newcomer: the quickstarts, the notebook, and every command of the README."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import BASE, ROOT

BIN = Path(sys.executable).parent
READMES = ["README.md", "README_zh.md"]
PAGES = ["docs/distributed", "docs/handover", "docs/quantised", "docs/scores"]
TWINS = [READMES, *([f"{page}.md", f"{page}_zh.md"] for page in PAGES)]


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)


def commands(readme: str) -> list[str]:
    """The commands of all shell blocks, one each, without comments."""
    lines = "".join(blocks(readme, "sh")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.mark.parametrize("language", ["sh", "python", "json", "text"])
@pytest.mark.parametrize(("english", "chinese"), TWINS)
def test_both_languages_show_the_same_code(english, chinese, language):
    assert blocks(english, language) == blocks(chinese, language)


@pytest.mark.parametrize("pages", TWINS)
def test_both_languages_have_the_same_outline(pages):
    """Headings, and rows of tables."""
    outlines = [re.findall(r"^(?:#+ |\|)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE) for page in pages]
    assert outlines[0] == outlines[1]


@pytest.mark.parametrize("readme", [page for pages in TWINS for page in pages])
def test_links_lead_somewhere(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        there = (ROOT / readme).parent / target
        assert target[1:] in headings if target.startswith("#") else there.exists(), target


def test_the_readme_opens_with_the_two_make_targets():
    assert [command.split("  ")[0] for command in commands("README.md")[:2]] == ["make quickstart", "make test"]


@pytest.mark.slow
def test_every_command_and_snippet_of_the_readme_runs(tmp_path):
    """In a copy of the project, with the tiny base where an official folder stands and few steps.

    `make` and the installation are left out: this very test runs by the one inside the other.
    """
    copy = tmp_path / "glmft"
    ignored = shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", ".pytest_cache", ".ruff_cache")
    shutil.copytree(ROOT, copy, ignore=ignored)
    shutil.copytree(BASE, copy / "chatglm2-6b")
    records = (copy / "examples/quickstart/train.json").read_text(encoding="utf-8").splitlines()[:32]
    (copy / "data.json").write_text("\n".join(records) + "\n", encoding="utf-8")
    (copy / "snippet.py").write_text(blocks("README.md", "python")[0].replace("max_steps=50", "max_steps=2"))
    chosen = [c for c in commands("README.md") if not re.match(r"make|pip|python3 -m venv", c)]
    assert len(chosen) == 21
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(copy)
    for command in [*chosen, "python snippet.py"]:
        if "train.py" in command and "--max_steps" not in command:
            command = command.replace("layers.27.,layers.26.", "layers.3.,layers.2.") + " --max_steps 4"
        if "predict.py" in command:
            command += " --max_samples 4 --max_new_tokens 8"
        done = subprocess.run(
            command, shell=True, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("train_type", ["lora", "ptuning"])
def test_the_quickstart_learns_its_task_with_any_seed(train_type, seed):
    command = [sys.executable, "examples/quickstart/run.py", "--train_type", train_type, "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = re.fullmatch(r"triple F1 before (0\.\d{3}) after ([01]\.\d{3})", done.stdout.splitlines()[-1])
    assert last, done.stdout
    before, after = float(last[1]), float(last[2])
    assert before <= 0.1
    assert after >= 0.8
    for label in ("Input", "Label", "Output before", "Output after"):
        assert len(re.findall(rf"^{label}:", done.stdout, re.M)) == 3


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    scores = [o["data"]["text/plain"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    [f1] = [json.loads(s.replace("'", '"'))["f1"] for s in scores if "'f1'" in s]
    assert f1 >= 0.8
