"""`glmft serve`: models behind OpenAI's API."""

import socket
from typing import Any

from glmft.commands.extras import need
from glmft.commands.quiet import quiet
from glmft.errors import ConfigError
from glmft.settings.talk import ServeConfig, ServingSettings


def serve(config: ServeConfig) -> None:
    """Answer requests until a signal ends it.

    Raises:
        GlmftError: settings or models that cannot be used, a port that cannot be listened at, no extra `web`.
    """
    if problems := config.problems():
        raise ConfigError(problems)
    need("glmft serve", "fastapi", "uvicorn")
    quiet()
    with listening_socket(config) as listening:
        from glmft.inference.model_set import open_models
        from glmft.serving.app import make_app

        app = make_app(open_models(config.all_paths, config), config)
        names = ", ".join(app.state.dispatcher.models.names)
        print(f"serving {names} at {address(config, listening)}/v1; Ctrl-C ends it", flush=True)
        serve_until_signal(app, listening, 3)


def serve_until_signal(app: Any, listening: socket.socket, patience: int) -> None:
    """Answer requests of an ASGI application until a signal comes, and those that run then for `patience` seconds."""
    import uvicorn

    settings = uvicorn.Config(
        app, log_level="critical", access_log=False, timeout_graceful_shutdown=patience, server_header=False
    )
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        print("ended", flush=True)


def listening_socket(settings: ServingSettings) -> socket.socket:
    """A socket at the host and port, which takes no connection yet. Raises ConfigError if it cannot be had."""
    try:
        family, kind, *_, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {settings.host}: no such host; give an address of this one") from None
    listening = socket.socket(family, kind)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--host {settings.host} --port {settings.port}: cannot be listened at ({error.strerror}); give another"
        ) from None
    return listening


def address(settings: ServingSettings, listening: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listening.getsockname()[1]}"
