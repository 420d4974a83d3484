"""What several tests build on: tiny models, tokenizers, blocks and runs."""
