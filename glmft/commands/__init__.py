"""One file a command: what `glmft COMMAND` does, given its settings."""
