"""The Beam graph: plan, score, select, write, publish."""
