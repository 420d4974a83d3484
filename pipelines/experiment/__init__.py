"""Does fusion work? The paper's two comparisons at a scale that two CPU cores finish in an hour."""
