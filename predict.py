"""See `python predict.py --help`."""

import sys

from glmft.cli import main

if __name__ == "__main__":
    sys.exit(main(command="predict", program="predict.py"))
