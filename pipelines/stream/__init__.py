"""The stream: from the corpus through the source models and fusion into training."""
