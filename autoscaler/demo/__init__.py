"""The embedded cluster: simulated nodes behind the real agent, driven by the real controller, at accelerated time."""

from autoscaler.demo.command import run_demo

__all__ = ["run_demo"]
