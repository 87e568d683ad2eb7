"""What is diagnosed, with which probes, and the trace that comes of it."""
