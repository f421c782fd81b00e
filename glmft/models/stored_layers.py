"""A model whose matrices stay in their files: it computes in float32 and never has one of them whole in memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glmft.models.loading import model_class
from glmft.models.stored import tied_names
from glmft.models.streaming import empty_model, other_buffers

NUMBERS = 1 << 23  # of a matrix in float32 at a time: 32 MiB


class StoredWeight:
    """A part of a module whose `weight` [rows, columns] is read whenever it is asked for."""

    def keep(self, read: Callable[[], Tensor], shape: tuple[int, int]) -> None:
        self.read, self.shape = read, shape

    @property
    def weight(self) -> Tensor:
        return self.read()


class StoredLinear(StoredWeight, nn.Linear):
    def __init__(self, of: nn.Linear, read: Callable[[], Tensor], bias: Tensor | None):
        nn.Module.__init__(self)
        self.in_features, self.out_features = of.in_features, of.out_features
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.float()))
        self.keep(read, (of.out_features, of.in_features))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out], in float32."""
        rows = max(1, NUMBERS // self.in_features)
        out = torch.cat([F.linear(hidden, part.float()) for part in self.weight.split(rows)], dim=-1)
        return out if self.bias is None else out + self.bias


class StoredEmbedding(StoredWeight, nn.Embedding):
    def __init__(self, of: nn.Embedding, read: Callable[[], Tensor]):
        nn.Module.__init__(self)
        for name in nn.Embedding.__constants__:
            setattr(self, name, getattr(of, name))
        self.keep(read, (of.num_embeddings, of.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., h], in float32."""
        return self.weight[ids].float()


def stored_model(config: Any, stored: Mapping[str, Tensor], whole: Callable[[str], bool] = lambda name: False) -> Any:
    """A model for inference that reads its matrices when it computes with them.

    Args:
        stored: tensors by the model's own names.
        whole: whether a module of some name gets weights in memory, as one that is to be copied must.
    """
    model = empty_model(model_class(config), config, "sdpa")
    tied = model.all_tied_weights_keys if tied_names(model) else {}

    def source(name: str) -> str:
        return tied.get(name, name)

    for prefix, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            name = f"{prefix}.{child_name}" if prefix else child_name
            if whole(name) or not isinstance(child, nn.Linear | nn.Embedding):
                continue
            read = _reader(stored, source(f"{name}.weight"))
            if isinstance(child, nn.Embedding):
                new: nn.Module = StoredEmbedding(child, read)
            else:
                new = StoredLinear(child, read, None if child.bias is None else stored[f"{name}.bias"])
            setattr(module, child_name, new)
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(stored[source(f"{prefix}.{name}")].float())
    for name, buffer in other_buffers(model):
        if name in stored:
            buffer.copy_(stored[name])
    return model.eval().requires_grad_(False)


def _reader(stored: Mapping[str, Tensor], name: str) -> Callable[[], Tensor]:
    return lambda: stored[name]
