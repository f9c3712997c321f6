"""Enforcement backends, one module each, behind one Protocol; capabilities and effect class are data."""
