"""Does fusion work? The paper's two comparisons at a scale that two CPU cores finish in 60 to 80 minutes."""
