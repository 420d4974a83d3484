"""Tiny models, tokenizers, blocks, records and runs that several tests share."""
