"""Nouns of the node, frozen between the stages."""
