"""The contract between the controller and the node agents: names, documents and the GPU table, no I/O.

Metrics flow one way (agent to Prometheus to controller), quotas the other. Either program can be replaced by
another one that keeps this package's names. Neighbours: everything imports it, it imports nothing of the project.
"""
