"""What a run takes, before it starts: memory and time as sums over a model's shape; no torch is needed for them."""
