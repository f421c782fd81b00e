"""Make transformers' Auto classes know `model_type: chatglm`, without importing transformers.

Nothing of such a folder is executed, trusted or not. Configuration and models are ours because their
classes are registered and the loaded configuration shows no `auto_map`; for tokenizers transformers prefers a folder's
code to a registered class, so ours is given where that code would be loaded.

Registration needs transformers, whose import takes seconds; `import glmft` and `--help` must not. So each registration
waits until the Auto module it belongs to is imported by whoever needs it: Python's import hook calls it after that.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def _register_config(auto: ModuleType) -> None:
    from glmft.models.configuration import ChatGLMConfig

    auto.AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    """`AutoModel` gives the model with its head, as the `auto_map` of official folders does."""
    from glmft.models.chatglm import ChatGLM6BForConditionalGeneration
    from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
    from glmft.models.configuration import ChatGLM2Config, ChatGLM6BConfig

    models = {ChatGLM6BConfig: ChatGLM6BForConditionalGeneration, ChatGLM2Config: ChatGLM2ForConditionalGeneration}
    for config, model in models.items():
        for kind in (auto.AutoModel, auto.AutoModelForCausalLM, auto.AutoModelForSeq2SeqLM):
            kind.register(config, model, exist_ok=True)


def _register_tokenizers(auto: ModuleType) -> None:
    from glmft.family import is_chatglm
    from glmft.models.configuration import ChatGLM2Config, ChatGLM6BConfig, ChatGLMConfig
    from glmft.tokenizers.chatglm4 import ChatGLM4Tokenizer
    from glmft.tokenizers.loading import ChatGLMTokenizer

    for config in (ChatGLMConfig, ChatGLM6BConfig, ChatGLM2Config):
        auto.AutoTokenizer.register(
            config, tokenizer_class=ChatGLMTokenizer, slow_tokenizer_class=ChatGLM4Tokenizer, exist_ok=True
        )
    load_code = auto.get_class_from_dynamic_module

    def class_of_folder(reference: str, folder: Any, *args: Any, **kwargs: Any) -> Any:
        if reference.rpartition(".")[2] in OFFICIAL_TOKENIZERS or is_chatglm(folder):
            return ChatGLMTokenizer
        return load_code(reference, folder, *args, **kwargs)

    auto.get_class_from_dynamic_module = class_of_folder


OFFICIAL_TOKENIZERS = ("ChatGLMTokenizer", "ChatGLM4Tokenizer")

REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.tokenization_auto": _register_tokenizers,
}


_registered: dict[str, ModuleType] = {}  # an import that was interrupted is made again, and gives another module


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers what is waiting when the outermost import of one of transformers' modules ends.

    Not earlier: registering imports transformers' own classes, and a module may be imported on the way to them, so that
    it would be met half done.
    """

    depth = 0  # imports of transformers' modules that have begun and not ended

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "transformers" or not _missing():
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self.depth += 1
                try:
                    run(module)
                finally:
                    self.depth -= 1
                if not self.depth:
                    _register_imported()

            spec.loader.exec_module = exec_module
        return spec


def _missing() -> list[str]:
    """The Auto modules that do not know our classes yet, imported or not."""
    return [name for name in REGISTRATIONS if name not in sys.modules or _registered.get(name) != sys.modules[name]]


def _register_imported() -> None:
    for name in _missing():
        module = sys.modules.get(name)
        if module is None or _registered.get(name) is module:  # registering another may have imported it
            continue
        _registered[name] = module
        try:
            REGISTRATIONS[name](module)
        except BaseException:
            del _registered[name]
            raise


def register() -> None:
    """Register now what is imported already, and the rest when it is imported."""
    if "transformers" in sys.modules:  # else an import was interrupted, and its parts are imported again
        _register_imported()
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
