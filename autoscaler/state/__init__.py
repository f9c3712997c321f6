"""Checkpoints of what was learnt: save and load in one place."""
