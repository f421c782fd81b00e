"""The page in one language: a head, four tabs."""

from pathlib import Path
from typing import Any

import gradio as gr

from glmft.web.chat_tab import chat_tab
from glmft.web.data_tab import data_tab
from glmft.web.predictions_tab import predictions_tab
from glmft.web.run_tab import run_tab
from glmft.web.site import Site
from glmft.web.words import LANGUAGES, speaker

STYLE = Path(__file__).with_name("style.css")
FONTS = ("system-ui", "-apple-system", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
FIXED_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace")
WAITING, AT_ONCE = 32, 4  # events of the page that may wait, and that run beside each other


def build_page(site: Site, language: str) -> gr.Blocks:
    """The page; nothing is sent anywhere."""
    say = speaker(language)
    with gr.Blocks(title=f"glmft · {say('tagline')}", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(head(language))
        with gr.Tabs():
            with gr.Tab(say("chat"), id="chat"):
                chat_tab(page, site, say)
            with gr.Tab(say("data"), id="data"):
                data_tab(page, site, say)
            for name, tab in (("run", run_tab), ("predictions", predictions_tab)):
                with gr.Tab(say(name), id=name) as opened:
                    relist, chosen = tab(page, site, say)
                opened.select(relist, chosen, chosen, api_visibility="private", show_progress="hidden")
    page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE, api_open=False)
    return page


def head(language: str) -> str:
    """The page's name and the way to the other language."""
    other = next(name for name in LANGUAGES if name != language)
    return (
        f'<div class="g-head"><b>glmft</b><span>{speaker(language)("tagline")}</span>'
        f'<a id="language" href="../{other}/" target="_self" lang="{other}">{LANGUAGES[other]}</a></div>'
    )


def theme() -> gr.themes.Base:
    """Fonts that every system has, so that none is fetched."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="md",
        font=[gr.themes.Font(name) for name in FONTS],
        font_mono=[gr.themes.Font(name) for name in FIXED_FONTS],
    ).set(body_background_fill="*neutral_50", block_border_width="1px", block_shadow="none")


def mounting(language: str) -> dict[str, Any]:
    """How gradio serves the page: no file of the machine, no record of runs, no other programme's interface."""
    # gradio's own words follow the browser's language; they are to follow the page's.
    locale = {"en": "en-US", "zh": "zh-CN"}[language]
    return {
        "head": f"<script>Object.defineProperty(navigator, 'language', {{get: () => '{locale}'}});</script>",
        "css": STYLE.read_text(encoding="utf-8"),
        "theme": theme(),
        "allowed_paths": [],
        "blocked_paths": ["/"],
        "show_error": False,
        "run_history": False,
        "footer_links": [],
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "max_file_size": 0,
    }
