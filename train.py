"""See `python train.py --help`."""

from glmft.cli import run_command

if __name__ == "__main__":
    run_command(command="train", program="train.py")
