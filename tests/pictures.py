"""The pictures of the page in docs/, made anew of a run folder that holds predictions.

python tests/pictures.py output/my-run docs
"""

import sys
import tempfile
from pathlib import Path

from browser import DESK, PHONE, Visit, driven, end, start

BASE = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "base"
TASK = "你现在是一个信息抽取模型，请抽取文本中的三元组，内部用_连接，之间用\\n分割。文本："
ASKED = f"{TASK}大家都知道豹虹有个作者，名叫敏勇。"
TABS = {"data": 1, "run": 2, "predictions": 3}


def picture(here: Visit, target: Path, names: list[str]) -> None:
    """One picture for each name, which ends in that of a tab."""
    here.ask(ASKED)
    here.wait_for(here.is_answered)
    for name in names:
        if tab := TABS.get(name.split("_")[-1]):
            here.open(tab)
        here.page.wait_for_timeout(4000)
        here.page.evaluate("window.scrollTo(0, 0)")
        here.page.mouse.move(0, 0)
        here.page.screenshot(path=target / f"{name}.png")
    here.context.close()


def main(run: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, driven() as chromium:
        server, address = start(
            [str(BASE), str(run), "--output_root", str(run.parent), "--data_path", str(BASE.parent)], Path(folder)
        )
        try:
            desk = [f"web_{part}" for part in ("chat", *TABS)]
            picture(Visit(chromium, address, DESK), target, desk)
            picture(Visit(chromium, address, DESK, "zh-CN"), target, [f"web_zh_{part}" for part in ("chat", "run")])
            picture(Visit(chromium, address, PHONE), target, ["web_phone_chat", "web_phone_run"])
        finally:
            end(server)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
