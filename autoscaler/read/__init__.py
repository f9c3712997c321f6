"""The world to a Snapshot: Prometheus ranges to usage bins, cluster objects to workloads."""
