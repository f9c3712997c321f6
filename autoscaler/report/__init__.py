"""Decisions to status, events and metrics: one record, rendered the same everywhere."""
