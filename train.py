"""See `python train.py --help`."""

import sys

from glmft.cli import main

if __name__ == "__main__":
    sys.exit(main(command="train", program="train.py"))
