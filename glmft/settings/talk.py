"""Settings of what talks with models: the chat in the terminal, the page, the server."""

import dataclasses
import ipaddress
import re
from dataclasses import dataclass, field
from typing import ClassVar

from glmft.settings.answers import SamplingSettings
from glmft.settings.checks import range_problems
from glmft.settings.config import ModelSettings
from glmft.settings.setting import LONG, setting


@dataclass
class TalkSettings(SamplingSettings, ModelSettings):
    """Which models, and how they answer.

    Args:
        paths: what was named without a flag.
    """

    paths: list[str] = field(default_factory=list, metadata={"limits": {}, "aliases": ()})

    @property
    def all_paths(self) -> list[str | None]:
        """Folders of models and adapters; None: the embedded base."""
        named = [path for path in (*self.paths, self.model_name_or_path) if path is not None]
        return list(named) or [None]

    @property
    def sampling(self) -> SamplingSettings:
        return SamplingSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SamplingSettings)})

    def problems(self) -> list[str]:
        """What the settings alone show to be wrong."""
        return range_problems(self)


@dataclass
class ChatConfig(TalkSettings):
    """Talk with models in the terminal; folders of models and adapters come first, none: the embedded tiny base."""

    title: ClassVar[str] = "chat"

    history: bool = setting(True, "a question belongs to the conversation before it; False: each stands alone")


@dataclass
class ServingSettings:
    """Who can reach what is served."""

    title: ClassVar[str] = "server"

    host: str = setting("127.0.0.1", "address to listen at; another than this host's own needs an api_key")
    port: int = setting(8000, "port to listen at; 0: one that is free", at_least=0, at_most=65535)
    api_key: str | None = setting(None, "refuse whoever does not know it")
    insecure: bool = setting(False, "let everybody who reaches the host in, without an api_key")

    @property
    def is_local(self) -> bool:
        """Whether only this host can connect."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def exposure_problems(self) -> list[str]:
        problems = []
        if self.api_key is not None and not re.fullmatch(r"[!-~]{1,512}", self.api_key):  # what a header can carry
            problems.append("--api_key: must be of 1 to 512 letters, digits and marks of ASCII, without white space")
        if not self.is_local and self.api_key is None and not self.insecure:
            problems.append(
                f"--host {self.host}: would let everybody who reaches it use the models; give --api_key, or --insecure "
                "if that is meant"
            )
        return problems


@dataclass
class ServeConfig(ServingSettings, TalkSettings):
    """Serve models as OpenAI's API does; folders of models and adapters come first, none: the embedded tiny base."""

    title: ClassVar[str] = "limits"

    max_queue: int = setting(64, "requests that may wait; further ones are refused (429)", at_least=1, at_most=10**6)
    max_batch_size: int = setting(8, "waiting requests that are answered together", at_least=1, at_most=4096)
    max_request_bytes: int = setting(1 << 20, "largest request (413)", at_least=1024, at_most=1 << 30)
    max_context: int | None = setting(
        None,
        "longest conversation with its answer, in tokens (400); none: what the model takes",
        at_least=8,
        at_most=LONG,
    )

    def problems(self) -> list[str]:
        return super().problems() + self.exposure_problems()
