"""What a command needs that is not installed with everything."""

import importlib.util

from glmft.errors import ConfigError


def need(command: str, *modules: str) -> None:
    """Raises ConfigError if one of some modules of the extra `web` is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'{command} needs {", ".join(missing)}; install with: pip install "glmft[web]"')
