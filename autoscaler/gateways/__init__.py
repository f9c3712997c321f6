"""Outside systems other than Kubernetes and Prometheus, each with its in-memory twin beside it."""
