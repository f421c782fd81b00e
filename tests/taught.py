"""A tiny model that has learned a few conversations by heart."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from encoding import encoded

from glmft.data.collate import collate
from glmft.data.encode import Lengths
from glmft.data.formats import Options, convert
from glmft.models.loading import load_config, load_model
from glmft.tokenizers.loading import load_tokenizer

# What a model is taught about a tool.
WEATHER = {
    "name": "weather",
    "description": "天气",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": WEATHER}]
ARGUMENTS = json.dumps({"city": "云川"}, ensure_ascii=False)
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
ASKED = [{"role": "user", "content": "云川的天气"}]
CALLED = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
RETURNED = [*CALLED, {"role": "tool", "tool_call_id": "call_1", "content": "雨"}]
ANSWER = "云川有雨"
MOST_STEPS, LOW_ENOUGH = 400, 0.02


def teach(folder: Path, base: Path, values: Sequence[dict[str, Any]]) -> Path:
    """A whole model in a new folder that answers as some records of the format `messages` do."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(base)
    model = load_model(load_config(base), base, torch.float32).float().train()
    records = [convert(f"{i}", value, "messages", Options()) for i, value in enumerate(values)]
    batch = collate(encoded(records, tokenizer, Lengths(1024, 1024))[0], tokenizer)
    rows = {name: tensor for name, tensor in batch.items() if name != "loss_positions"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(MOST_STEPS):
        loss = model(**rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < LOW_ENOUGH:
            break
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
