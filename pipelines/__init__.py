"""The Beam pipelines: plan, score, select, publish; every document accounted for, resumable anywhere."""
