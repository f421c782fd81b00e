"""What the loop in glmft/engine.py calls."""
