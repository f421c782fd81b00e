"""Several models by name, over one copy of each base's weights: adapters are put on and taken off it."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, GlmftError, nearest
from glmft.inference.loading import Place, load, locate, warn_of_quantisation
from glmft.inference.wearing import Adapter, Nothing, is_lora, is_shareable, load_wearable
from glmft.settings.config import DataSettings, ModelSettings
from glmft.settings.defaults import EMBEDDED, shipped


@dataclass
class Base:
    """A model in memory, and what it wears at the moment.

    Args:
        peft_model: what peft made of it, if there are LoRA adapters.
    """

    model: Any
    tokenizer: Any
    peft_model: Any = None
    wears: Adapter = field(default_factory=Nothing)

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())
        self.untouched = self.trains

    @property
    def trains(self) -> list[bool]:
        """Which of its own parameters train: what is frozen is computed by other code, and differs in a last digit."""
        return [parameter.requires_grad for parameter in self.parameters]

    def wear(self, adapter: Adapter, trains: Sequence[bool]) -> None:
        if adapter is not self.wears:
            self.wears.take_off()
            self.wears = adapter
            adapter.put_on()
            for parameter, is_trained in zip(self.parameters, trains, strict=True):
                parameter.requires_grad = is_trained


@dataclass(frozen=True)
class Member:
    """A model of a set.

    Args:
        name: by which it is asked for.
        place: where it lies.
        base: what it is made of; members may share one.
        trains: which of the base's parameters train, as `Base` has them.
    """

    name: str
    place: Place
    base: Base
    adapter: Adapter
    trains: Sequence[bool]

    @property
    def tokenizer(self) -> Any:
        return self.base.tokenizer

    @property
    def trained(self) -> DataSettings:
        """How it was trained, as far as that is recorded: its template, and what stands before every question."""
        return self.place.trained_with or DataSettings()

    @property
    def takes_history(self) -> bool:
        """Whether its template has words for more than one question."""
        return self.trained.template == "default"

    @property
    def longest(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return int(self.base.model.config.max_position_embeddings)


class ModelSet:
    """Models that are asked one at a time; `open_models` makes one.

    Args:
        refused: what was wrong with the paths that could not be opened, by path.
    """

    def __init__(self, members: Sequence[Member], refused: dict[str, list[str]] | None = None):
        self.members = {member.name: member for member in members}
        self.refused = refused or {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self.members)

    def __getitem__(self, name: str) -> Member:
        """Raises ConfigError for a name that no model has."""
        if name not in self.members:
            raise ConfigError(f"{name}: no such model{nearest(name, self.names)}; there are {', '.join(self.names)}")
        return self.members[name]

    @contextmanager
    def at_work(self, name: str) -> Iterator[tuple[Any, Any]]:
        """Model and tokenizer, for one user at a time: others wait."""
        member = self[name]
        with self._lock:
            member.base.wear(member.adapter, member.trains)
            yield member.base.model, member.tokenizer


def open_models(paths: Sequence[str | None], settings: ModelSettings, tolerant: bool = False) -> ModelSet:
    """Load every base once, and put the adapters beside it.

    LoRA adapters share their base through peft; prefixes, prompts and the tensors that freeze trained are put on and
    taken off. A whole model, and LoRA that changes its base's own tensors (biases; PiSSA and OLoRA as peft saves them),
    is in memory by itself.

    Args:
        paths: folders of models and adapters; None: the embedded tiny base.
        settings: all but `model_name_or_path` counts.
        tolerant: go on without what cannot be opened, which is then in `refused`.

    Raises:
        ConfigError, CheckpointError: a path that cannot be opened, or one that is named twice.
    """
    if settings.ptuning_checkpoint is not None and len(paths) > 1:
        raise ConfigError("--ptuning_checkpoint: is put onto one model; name only that")
    refused: dict[str, list[str]] = {}
    places: dict[str, Place] = {}

    def tried(path: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except GlmftError as error:
            if not tolerant:
                raise
            refused[path] = error.problems
            return None

    for path in map(str_of, paths):
        if Path(path).resolve() in [Path(other).resolve() for other in places]:
            raise ConfigError(f"{path}: is named twice")
        if place := tried(path, lambda path=path: locate(path, settings.base_model_path)):
            places[path] = place
    names = dict(zip(places, names_of(list(places)), strict=True))
    bases: dict[Any, Base] = {}
    # LoRA comes last: it gives the base's modules other names, by which nothing else could be put on.
    lora_last = sorted(places, key=lambda path: bool(places[path].adapter) and is_lora(places[path]))
    opened = {
        path: tried(path, lambda path=path: open_member(names[path], path, places[path], bases, settings))
        for path in lora_last
    }
    return ModelSet([opened[path] for path in places if opened[path] is not None], refused)


def str_of(path: str | None) -> str:
    return str(shipped(f"{EMBEDDED}/base")) if path is None else str(path)


def open_member(name: str, path: str, place: Place, bases: dict[Any, Base], settings: ModelSettings) -> Member:
    """One model; its base is taken from those that are there, or joins them."""
    common = {
        "mode": place.mode(settings.mode),
        "dtype": settings.dtype,
        "device": settings.device,
        "quantization_bit": settings.quantization_bit,
        "attn_implementation": settings.attn_implementation,
    }
    if settings.ptuning_checkpoint is not None or (place.adapter is not None and not is_shareable(place)):
        base = Base(*load(path, base_model_path=settings.base_model_path, prefix=settings.ptuning_checkpoint, **common))
        return Member(name, place, base, Nothing(), base.untouched)
    key = place.base.resolve()
    if key not in bases:
        bases[key] = Base(*load(place.base, **common))
    base = bases[key]
    if place.adapter is None:
        return Member(name, place, base, Nothing(), base.untouched)
    warn_of_quantisation(place, base.model.config, "--quantization_bit")
    base.wear(Nothing(), base.untouched)
    adapter, base.peft_model = load_wearable(base.model, place, base.peft_model)
    return Member(name, place, base, adapter, base.trains)


def names_of(paths: Sequence[str]) -> list[str]:
    """The last part of each folder's path, or as many of them as it takes to tell it from the others."""
    embedded = shipped(f"{EMBEDDED}/base").resolve()
    folders = [Path(os.path.abspath(path)) for path in paths]

    def name(folder: Path, length: int) -> str:
        return "tiny" if folder.resolve() == embedded else "/".join(folder.parts[-length:])

    names = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        lengths = range(1, len(folder.parts) + 1)
        names.append(next(n for i in lengths if (n := name(folder, i)) not in [name(o, i) for o in others]))
    return names
