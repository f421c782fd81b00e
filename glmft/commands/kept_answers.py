"""Answers on disk as they come, so that the same command goes on from them after a full disk or a kill."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmft.errors import CheckpointError
from glmft.files import digest_of
from glmft.settings.config import PredictConfig

PARTIAL = "partial_predictions.jsonl"


class KeptAnswers:
    """The answers to some records, by number.

    Args:
        path: of the file; one that another command has made, by its key, is replaced.
        key: of all that the answers hang on.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.answers = path, {}
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        self.size = 0
        if lines and lines[0] == self._line({"key": key}):
            for line in lines:
                if not self._take(line):
                    break
                self.size += len(line)
        self._write([] if self.size else [{"key": key}])

    def add(self, answers: dict[int, str]) -> None:
        """Keep further answers. Raises CheckpointError if the disk is full; the file then ends with a whole line."""
        self._write([{"record": number, "predict": text} for number, text in answers.items()])
        self.answers |= answers

    def _take(self, line: bytes) -> bool:
        """Whether a line is whole; its answer."""
        try:
            value = json.loads(line)
            if "record" in value:
                self.answers[int(value["record"])] = str(value["predict"])
        except (ValueError, KeyError, TypeError):
            return False
        return line.endswith(b"\n")

    def _write(self, values: Sequence[dict[str, Any]]) -> None:
        data = b"".join(map(self._line, values))
        try:
            with self.path.open("ab") as file:
                file.truncate(self.size)
                file.write(data)
        except OSError as error:
            self._cut()
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror}); {len(self.answers)} answers are kept there: free "
                "some space and give the same command again"
            ) from None
        self.size += len(data)

    def _cut(self) -> None:
        if self.size:
            with self.path.open("ab") as file:
                file.truncate(self.size)
        else:
            self.path.unlink(missing_ok=True)

    @staticmethod
    def _line(value: dict[str, Any]) -> bytes:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def key_of(config: PredictConfig, questions: Sequence[Any], base: Path, adapter: Path | None) -> str:
    """A hash over the settings, the questions and the weights. Raises OSError."""
    from glmft.models.loading import fingerprint

    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "output_dir"}
    adapters = [folder for folder in (adapter, config.ptuning_checkpoint and Path(config.ptuning_checkpoint)) if folder]
    files = [path for folder in adapters for path in (sorted(folder.iterdir()) if folder.is_dir() else [folder])]
    weights = [digest_of(path) for path in files if path.suffix in (".safetensors", ".bin")]
    text = json.dumps([settings, questions, fingerprint(base), weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
