"""Scheduled batches: a journal of claims, a frozen reference, drift alarms."""
