"""Text to tokens with byte offsets, and chat templates."""
