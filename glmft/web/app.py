"""`glmft web`: the page, served."""

from pathlib import Path
from typing import Any

from glmft.commands.extras import need
from glmft.commands.quiet import quiet
from glmft.commands.serve import address, listening_socket, serve_until_signal
from glmft.errors import ConfigError
from glmft.settings.web import WebConfig

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#2563eb"/>'
    '<path d="M7 24 13 14l5 5 7-11" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round" '
    'stroke-linejoin="round"/></svg>'
)


def web(config: WebConfig) -> None:
    """Serve the page until a signal ends it.

    Models that cannot be opened are named on the page; the others, data, runs and predictions are there.

    Raises:
        ConfigError: settings that cannot be used, a port that cannot be listened at, no extra `web`.
    """
    if problems := config.problems():
        raise ConfigError(problems)
    need("glmft web", "gradio", "fastapi", "uvicorn")
    quiet()
    with listening_socket(config) as listening:
        from glmft.inference.model_set import open_models

        app = make_app(config, open_models(config.all_paths, config, tolerant=True))
        print(f"the page is at {address(config, listening)}; Ctrl-C ends it", flush=True)
        serve_until_signal(app, listening, 1)


def make_app(config: WebConfig, models: Any) -> Any:
    """The page in every language as an ASGI application, guarded.

    Args:
        models: `glmft.inference.model_set.ModelSet`.
    """
    import gradio
    from fastapi import FastAPI, Request
    from fastapi.responses import RedirectResponse, Response

    from glmft.web.guard import Guard
    from glmft.web.page import build_page, mounting
    from glmft.web.places import Root
    from glmft.web.site import Site
    from glmft.web.words import LANGUAGES, preferred

    data = [Root(path, "--data_path") for path in config.data_roots]
    site = Site(models, Root(Path(config.output_root), "--output_root"), data, config.sampling)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def choose_language(request: Request) -> Response:
        language = config.language or preferred(request.headers.get("accept-language", ""))
        return RedirectResponse(f"/{language}/", 307, {"Vary": "Accept-Language"})

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml")

    for language in LANGUAGES:
        app = gradio.mount_gradio_app(app, build_page(site, language), f"/{language}", **mounting(language))
    return Guard(app, config)
