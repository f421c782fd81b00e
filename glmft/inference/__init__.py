"""A path to a model, its answers, and their scores."""
