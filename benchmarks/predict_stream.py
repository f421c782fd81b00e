"""What `glmft predict` takes beside the model: time and memory for files of different lengths.

    python -m benchmarks.predict_stream [--records 20000,200000]

A stub stands in for the model and answers at once, so that reading, encoding, batching, writing and scoring are all
that is left. Each length has a process of its own. Memory that goes with the length of the file would show.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.encode import write
from glmft.commands import predict as command
from glmft.settings.answers import PredictConfig
from glmft.settings.defaults import EMBEDDED, shipped
from glmft.tokenizers.loading import load_tokenizer

MEASURE = "--measure"


class Stub:
    """Answers with the prompt's last tokens."""

    device = torch.device("cpu")

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat((input_ids, input_ids[:, -9:-1]), dim=1)


def measure(count: int) -> dict[str, float]:
    command.load_for = lambda config: (Stub(), load_tokenizer(shipped(f"{EMBEDDED}/base")))
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.jsonl", Path(folder) / "out"
        write(data, count)
        started = time.perf_counter()
        results = command.predict(PredictConfig(test_path=str(data), output_dir=str(out), device="cpu"))
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        written, wanted = (out / "generated_predictions.txt").open(encoding="utf-8"), data.open(encoding="utf-8")
        for answer, record in zip(written, wanted, strict=True):
            assert json.loads(answer)["labels"] == json.loads(record)["output"], "the order is that of the file"
        assert results["records"] == count
    return {"seconds": seconds, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="20000,200000")
    parser.add_argument(MEASURE, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    for count in map(int, args.records.split(",")):
        arguments = [sys.executable, "-m", "benchmarks.predict_stream", MEASURE, str(count)]
        printed = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
        figures = json.loads(printed.splitlines()[-1])
        speed, peak = count / figures["seconds"], figures["peak"] / 2**20
        print(f"{count:,} records: {figures['seconds']:.0f} s, {speed:.0f} a second; peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
