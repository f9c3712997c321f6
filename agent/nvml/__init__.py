"""NVML, the driver's library: the only package that imports pynvml."""
