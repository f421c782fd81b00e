"""What GLM-4's rows cost beside tiktoken alone, in processor time of one core a record.

    python -m benchmarks.encode_tiktoken --model glm-4-9b-chat [--records 100000]

`messages`: ids of messages, role tokens in front, beside `tiktoken.Encoding.encode` on the texts in them. `rows`:
conversations to rows with labels, cut and counted, beside that. `files`: lines of a file to a table of rows, as they
are cached, beside `json.loads` and that.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.encode import write
from glmft.data.cache import CHUNK, Recipe, encode_chunk
from glmft.data.encode import Lengths, Rules, encode_records
from glmft.data.formats import Options, raw_chunks, read_records
from glmft.tokenizers.loading import load_tokenizer

ROUNDS = 3


def microseconds(work: Callable[[], Any], records: int) -> float:
    """Of the fastest of some rounds, a record."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found) / records * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with GLM-4's tokenizer.model")
    parser.add_argument("--records", type=int, default=100_000)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model, "glm4")
    recipe = Recipe(Options(), Rules(Lengths(256, 128)))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        write(data, args.records)
        records, lines = read_records(data)[0], data.read_bytes().splitlines()
        chunks = list(raw_chunks([data], recipe.options, CHUNK))
    parts = [records[first : first + CHUNK] for first in range(0, len(records), CHUNK)]
    encode = tokenizer.encoding.encode
    texts = [f"\n{message['content']}" for record in records for message in record.messages]

    def from_lines() -> None:
        for line in lines:
            value = json.loads(line)
            encode(f"\n{value['instruction']}{value['input']}")
            encode(f"\n{value['output']}")

    gc.freeze()  # what this program holds all at once is not the encoding's to look through
    messages = [message for record in records for message in record.messages]

    def alone() -> None:
        for text in texts:
            encode(text)

    def as_messages() -> None:
        for message in messages:
            tokenizer.message_ids(message)

    ways = {
        "messages": (as_messages, alone),
        "rows": (
            lambda: [encode_records(part, tokenizer, recipe.rules) and None for part in parts],
            alone,
        ),
        "files": (lambda: [encode_chunk(chunk, recipe, tokenizer) and None for chunk in chunks], from_lines),
    }
    for name, (ours, other) in ways.items():
        mine, theirs = microseconds(ours, args.records), microseconds(other, args.records)
        print(f"{name}: {mine:.1f} µs a record, tiktoken alone {theirs:.1f}; ratio {mine / theirs:.2f}")


if __name__ == "__main__":
    main()
