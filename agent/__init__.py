"""The node agent: sample, attribute, govern, enforce, export; one process per GPU node, no Kubernetes client."""
