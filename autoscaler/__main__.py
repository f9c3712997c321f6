"""`python -m autoscaler` is tf-autoscaler."""

from autoscaler.cli import main

main()
