"""See `python merge_lora.py --help`."""

from glmft.cli import run_command

if __name__ == "__main__":
    run_command(command="merge", program="merge_lora.py")
