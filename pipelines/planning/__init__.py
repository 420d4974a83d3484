"""What a run would do and need, found without starting it."""
