"""Settings of the page in the browser."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from glmft.settings.defaults import shipped
from glmft.settings.setting import setting
from glmft.settings.sources import ENDINGS
from glmft.settings.talk import ServingSettings, TalkSettings


@dataclass
class WebConfig(ServingSettings, TalkSettings):
    """A page to talk with models and to look at data, runs and predictions; folders of models and adapters come first,
    none: the embedded tiny base."""

    title: ClassVar[str] = "page"

    port: int = setting(7860, "port to listen at; 0: one that is free", at_least=0, at_most=65535)
    language: str | None = setting(None, "of the page; none: the browser's", choices=("en", "zh"))
    output_root: str = setting("output", "folder below which runs and predictions are looked for")
    data_path: str | None = setting(
        None, "comma-separated files of records, and folders of them, that the page shows; none: the shipped samples"
    )

    @property
    def data_roots(self) -> list[Path]:
        """The files and folders of `data_path`."""
        if self.data_path is None:
            return [shipped("examples")]
        return [Path(part.strip()) for part in self.data_path.split(",") if part.strip()]

    def problems(self) -> list[str]:
        problems = super().problems() + self.exposure_problems()
        if Path(self.output_root).exists() and not Path(self.output_root).is_dir():
            problems.append(f"--output_root {self.output_root}: is no folder")
        for path in self.data_roots:
            if not path.exists():
                problems.append(f"--data_path {path}: there is no such file or folder")
            elif path.is_file() and not path.name.endswith(ENDINGS):
                problems.append(f"--data_path {path}: ends in none of {', '.join(ENDINGS)}")
        return problems
