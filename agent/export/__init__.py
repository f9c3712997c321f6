"""Exporting: a tick's figures as Prometheus sees them."""
