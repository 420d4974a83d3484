"""Checkpoints from anywhere: folders, URLs, hub names, GGUF files and adapters."""
