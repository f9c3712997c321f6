"""Snapshot to wanted figures: pure, vectorised over the fleet."""
