"""Virtual tokens at the embedding: prompt tuning (Lester et al., 2021) and P-Tuning (Liu et al., 2021)."""

import torch
from torch import Tensor, nn

ENCODERS = ("none", "mlp", "lstm")


class PromptEncoder(nn.Module):
    """Embeddings of `length` virtual tokens.

    Args:
        encoder: `none`: the embedding itself; `mlp`: linear, ReLU, linear, ReLU, linear over it; `lstm`: two
            bidirectional LSTM layers, then linear, ReLU, linear, as P-Tuning has it.
        size: of a token embedding.
        hidden_size: inside the encoder.
    """

    def __init__(self, length: int, size: int, encoder: str = "none", hidden_size: int | None = None):
        super().__init__()
        hidden = hidden_size or size
        self.embedding = nn.Embedding(length, size)
        if encoder == "lstm":
            self.lstm = nn.LSTM(size, hidden, num_layers=2, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, size))
        elif encoder == "mlp":
            linear = (nn.Linear(size, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, size))
            self.mlp = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])

    def forward(self) -> Tensor:
        """[length, size], in the encoder's own dtype."""
        tokens = torch.arange(self.embedding.num_embeddings, device=self.embedding.weight.device)
        virtual = self.embedding(tokens)
        if hasattr(self, "lstm"):
            virtual = self.lstm(virtual[None])[0][0]
        return self.mlp(virtual) if hasattr(self, "mlp") else virtual
