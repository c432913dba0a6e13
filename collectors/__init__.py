"""Monitor and simulate: the world in, windows out.

Ground floor. Knows nothing of actuators, analyzers or the agent: it is given an address, a clock and an HTTP client, and
returns readings and windows. One file or folder a source.
"""
