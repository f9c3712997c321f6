"""Who a process belongs to: pods from a file or the cluster, processes by their cgroup."""
