"""Advice on the command line, without a cluster: `estimate` from a model's size, `recommend` from Prometheus alone."""
