"""Who holds state: source models, the aligner, the target model, the training worker, the run monitor."""
