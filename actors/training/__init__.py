"""A training worker: the target model, its steps, its journal, its checkpoints."""
