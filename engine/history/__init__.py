"""What a run has done: its result, its ledger, and when it stops."""
