"""A training worker: the target model, its steps, journal, checkpoints and export."""
