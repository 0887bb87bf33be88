"""Distils a rater into a student that scores at the speed of memory."""
