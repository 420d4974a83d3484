"""Source models: each scores passages behind its own tokenizer and engine."""
