"""Source models: each scores passages with its own tokenizer and engine."""
