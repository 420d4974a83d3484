"""The method: alignment, vocabulary mapping, fusion, losses and merging."""
