"""What the project promises a newcomer: the quickstarts, the notebook, and every command of the README."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT

BIN = Path(sys.executable).parent
READMES = ["README.md", "README_zh.md"]
PAGES = [f"docs/{page.name.removesuffix('_zh.md')}" for page in sorted((ROOT / "docs").glob("*_zh.md"))]
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
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = target.partition("#")
        there = ROOT / readme if not path else (ROOT / readme).parent / path
        assert path.startswith("https://") or there.exists(), target
        assert not heading or heading in headings(there), target


def headings(page: Path) -> set[str]:
    """What a link may lead to within a page."""
    titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_readme_opens_with_the_two_make_targets():
    assert [command.split("  ")[0] for command in commands("README.md")[:2]] == ["make quickstart", "make test"]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "count"), [("README.md", 9), ("docs/run.md", 6)])
def test_every_command_and_snippet_of_a_page_runs(page, count, tmp_path):
    """In a copy of the project, with few steps; nothing else is put there.

    `make` and the installation are left out: this very test runs by the one inside the other.
    """
    copy = tmp_path / "glmft"
    ignored = shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", ".pytest_cache", ".ruff_cache")
    shutil.copytree(ROOT, copy, ignore=ignored)
    chosen = [c for c in commands(page) if not re.match(r"make|pip|python3 -m venv", c)]
    assert len(chosen) == count
    for number, snippet in enumerate(blocks(page, "python")):
        (copy / f"snippet-{number}.py").write_text(snippet.replace("max_steps=50", "max_steps=2"), encoding="utf-8")
        chosen.append(f"python snippet-{number}.py")
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(copy)
    for command in chosen:
        if "train.py" in command:
            command = re.sub(r"--max_steps \d+", "", command) + " --max_steps 4"
            command = re.sub(r"--(resume|save_model_step) \d+", r"--\1 2", command)
        if "predict.py" in command:
            command += " --max_samples 4 --max_new_tokens 8"
        done = subprocess.run(
            command, shell=True, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("train_type", "least"), [("lora", 0.6), ("ptuning", 0.5)])
def test_the_quickstart_generalises_with_any_seed(train_type, least, seed):
    """On names and sentence patterns that were never trained, where the base and a regex get nothing."""
    command = [sys.executable, "examples/quickstart/run.py", "--train_type", train_type, "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    score = r" +([01]\.\d{3})"
    rows = re.findall(rf"^(base model|regex|fine-tuned).*?{score}{score}{score}$", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["base model", "regex", "fine-tuned"]
    (_, base_seen, base_new, base_old), (_, regex_seen, regex_new, _), (_, seen, new, _) = rows
    assert max(map(float, (base_seen, base_new, regex_new))) <= 0.1
    assert min(map(float, (base_old, regex_seen, seen))) >= 0.6
    assert float(new) >= least
    assert done.stdout.splitlines()[-1] == f"triple F1 before {base_new} after {new}"
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
    assert f1 >= 0.6
