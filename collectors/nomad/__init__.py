"""Nomad: its jobs and allocations by the HTTP API, and what its agents measure of them."""
