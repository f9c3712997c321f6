"""A node without a GPU: scenarios in, samples out."""
