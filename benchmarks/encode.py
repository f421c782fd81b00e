"""Encoding of many short records: records a second and peak memory, beside a transformers slow tokenizer one by one.

    python -m benchmarks.encode [--records 1000000] [--num_proc 2]

The comparison encodes the same records in one process through `PreTrainedTokenizer.__call__` of the base class, which
is what a slow tokenizer does, on a sample of them; both figures are per second of the whole command's wall clock.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from transformers import PreTrainedTokenizer

from glmft.data.cache import Recipe, cached_rows
from glmft.data.encode import Lengths, Rules
from glmft.data.formats import Options
from glmft.settings.defaults import EMBEDDED, shipped
from glmft.tokenizers.loading import load_tokenizer


class Slow(PreTrainedTokenizer):
    """A sentencepiece tokenizer as transformers' slow tokenizers are written."""

    def __init__(self, tokenizer):
        self.sp, self.size = tokenizer.sp, tokenizer.vocab_size
        super().__init__(unk_token="<unk>", eos_token="</s>", pad_token="<unk>")

    @property
    def vocab_size(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {self.sp.id_to_piece(i): i for i in range(self.sp.vocab_size())}

    def _tokenize(self, text: str) -> list[str]:
        return self.sp.encode_as_pieces(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp.id_to_piece(index)


def write(path: Path, count: int) -> None:
    rows = shipped(f"{EMBEDDED}/train.json").read_text(encoding="utf-8").splitlines()
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = json.loads(rows[i % len(rows)])
            file.write(json.dumps({**row, "instruction": f"抽取{i}："}, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--num_proc", type=int, default=2)
    parser.add_argument("--sample", type=int, default=5000, help="records for the slow tokenizer")
    args = parser.parse_args()
    tokenizer = load_tokenizer(shipped(f"{EMBEDDED}/base"))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        write(data, args.records)
        started = time.perf_counter()
        recipe = Recipe(Options(), Rules(Lengths(256, 128)))
        rows = cached_rows([data], recipe, tokenizer, Path(folder) / "cache", args.num_proc)
        ours = args.records / (time.perf_counter() - started)
        started = time.perf_counter()
        cached_rows(
            [data], Recipe(Options(), Rules(Lengths(256, 128))), tokenizer, Path(folder) / "cache", args.num_proc
        )
        again = time.perf_counter() - started
        slow, lines = Slow(tokenizer), data.read_text(encoding="utf-8").splitlines()[: args.sample]
        started = time.perf_counter()
        for line in lines:
            record = json.loads(line)
            prompt = slow(tokenizer.build_prompt(record["instruction"] + record["input"]))["input_ids"]
            answer = slow(record["output"])["input_ids"]
            assert [*prompt, *answer]
        theirs = len(lines) / (time.perf_counter() - started)
        scale = 1 if sys.platform == "darwin" else 1024
        own, children = (
            resource.getrusage(who).ru_maxrss * scale for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(f"{len(rows)} rows: {ours:.0f} records/s with {args.num_proc} processes; from the cache in {again:.2f} s")
        print(f"slow tokenizer, one process: {theirs:.0f} records/s; ratio {ours / theirs:.1f}")
        print(f"peak memory: {own / 2**30:.2f} GiB here, {children / 2**30:.2f} GiB in the largest other process")


if __name__ == "__main__":
    main()
