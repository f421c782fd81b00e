"""Every setting once, and the ways in which users give it: flags, YAML, DeepSpeed files."""
