"""The embedded cluster: simulated nodes behind the real agent, driven by the real controller, at accelerated time."""
