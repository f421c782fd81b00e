from glmft.cli import run_command

run_command()
