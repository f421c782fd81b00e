"""See `python predict.py --help`."""

from glmft.cli import run_command

if __name__ == "__main__":
    run_command(command="predict", program="predict.py")
