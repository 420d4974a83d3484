"""How records flow: from the corpus through source models and aligners into training."""
