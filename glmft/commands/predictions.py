"""generated_predictions.txt while it grows: whole lines, in the order of the records, whatever ends the command."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glmft.errors import CheckpointError, ConfigError
from glmft.files import digest_of, write_json
from glmft.reading import is_file, parse_json, read_json
from glmft.settings.answers import PredictConfig

PREDICTIONS, SETTINGS, RESULTS = "generated_predictions.txt", "predict_config.json", "predict_results.json"
# What a command may change when it goes on: no answer hangs on it, or `weights` tell more of it.
FREE = (
    *("output_dir", "resume", "max_samples", "local_rank", "test_path", "prompt", "on_bad_record"),
    *("per_device_eval_batch_size", "max_tokens_per_batch", "device", "use_cpu", "device_map"),
    *("model_name_or_path", "base_model_path", "ptuning_checkpoint"),
)


@dataclasses.dataclass
class Kept:
    """What a file of answers holds.

    Args:
        lines: whole lines.
        size: their bytes.
    """

    lines: int = 0
    size: int = 0


def kept_answers(path: Path) -> Iterator[tuple[str, int]]:
    """The label of every whole line of a file of answers, and the bytes up to the line's end.

    A last line that a kill cut short is left out.

    Raises:
        CheckpointError: a line that is no answer.
    """
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            label = _label(line)
            if label is None:
                if not line.endswith(b"\n"):
                    return
                raise CheckpointError(
                    f"{path}:{number}: is no line of labels and predict; mend it, or name a new folder"
                )
            size += len(line)
            yield label, size


def _label(line: bytes) -> str | None:
    try:
        value = parse_json(line.decode("utf-8"))
        return value["labels"] if isinstance(value["predict"], str) and isinstance(value["labels"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


class Predictions:
    """Appends answers.

    Args:
        path: of generated_predictions.txt.
        kept: what it holds; whatever follows goes.
    """

    def __init__(self, path: Path, kept: Kept):
        self.path, self.kept = path, kept

    def add(self, rows: Sequence[tuple[str, str]]) -> None:
        """Append (label, answer) lines. Raises CheckpointError if the disk is full; whole lines stay."""
        lines = (json.dumps({"labels": label, "predict": text}, ensure_ascii=False) + "\n" for label, text in rows)
        self._write("".join(lines).encode("utf-8", "surrogatepass"))
        self.kept.lines += len(rows)

    def _write(self, data: bytes) -> None:
        try:
            with self.path.open("r+b" if self.path.exists() else "w+b", buffering=0) as file:
                file.truncate(self.kept.size)
                file.seek(max(0, self.kept.size - 1))
                ends = b"\n" if self.kept.size and file.read(1) != b"\n" else b""
                try:
                    self.kept.size += _write_all(file, ends + data)
                except OSError:
                    file.truncate(self.kept.size)
                    raise
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror}); {self.kept.lines} answers are kept there: free "
                "some space and give the same command again"
            ) from None


def _write_all(file: Any, data: bytes) -> int:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    return len(data)


def hangs_on(config: PredictConfig, base: Path, adapter: Path | None) -> dict[str, Any]:
    """What answers hang on: settings, and hashes of the weights. Raises OSError."""
    from glmft.models.loading import fingerprint

    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    places = [adapter, config.ptuning_checkpoint and Path(config.ptuning_checkpoint)]
    files = [path for place in places if place for path in (sorted(place.iterdir()) if place.is_dir() else [place])]
    hashes = {path.name: digest_of(path) for path in files if path.suffix in (".safetensors", ".bin")}
    return {"settings": settings, "weights": {"base": fingerprint(base), **hashes}}


def differences(folder: Path, now: dict[str, Any]) -> list[str]:
    """In what the answers in a folder differ from what would be answered now; none if it does not say."""
    if not is_file(folder / SETTINGS):
        return []
    was = read_json(folder / SETTINGS)
    before, after = was.get("settings"), now["settings"]
    before = before if isinstance(before, dict) else {}
    changed = [
        f"--{name} was {before.get(name)}, now {value}" for name, value in after.items() if before.get(name) != value
    ]
    return changed + (["the weights of the model are others"] if was.get("weights") != now["weights"] else [])


def require_usable(folder: Path, resume: bool, now: dict[str, Any]) -> bool:
    """Whether answers are there to go on from.

    Without `resume` only the very same command goes on, from where it ended before its time.

    Raises ConfigError if they are finished, somebody else's, or of other settings.
    """
    if not (folder / PREDICTIONS).exists():
        return False
    if not is_file(folder / PREDICTIONS):
        raise ConfigError(f"{folder / PREDICTIONS}: is no regular file; name another folder with --output_dir")
    finished = (folder / RESULTS).exists() or not is_file(folder / SETTINGS)
    if finished and not resume:
        raise ConfigError(
            f"{folder}: holds predictions already; go on behind them with --resume, or name another folder with "
            "--output_dir"
        )
    if changed := differences(folder, now):
        raise ConfigError(
            f"{folder}: holds answers given in another way ({'; '.join(changed)}); name another folder "
            "with --output_dir"
        )
    return True


def begin(folder: Path, now: dict[str, Any]) -> None:
    """Make the folder ready for further answers: say what they hang on; scores of fewer are void. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).unlink(missing_ok=True)
    if not (folder / PREDICTIONS).exists():
        write_json(folder / SETTINGS, now)
