"""The official tokenizers, natively over sentencepiece."""
