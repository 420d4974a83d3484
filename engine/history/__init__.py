"""The history of a run: its steps, its totals, its result, its ledger, and when it ends."""
