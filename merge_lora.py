"""See `python merge_lora.py --help`."""

import sys

from glmft.cli import main

if __name__ == "__main__":
    sys.exit(main(command="merge", program="merge_lora.py"))
