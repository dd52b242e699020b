"""Programs that run the original projects, for `scripts/bench parity`; nothing of segbatch."""
