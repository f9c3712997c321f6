"""Nouns of the domain, pure and frozen: quantities, resources, annotations, profiles, workloads, decisions."""
