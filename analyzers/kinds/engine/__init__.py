"""Continuous batching: an engine file with what was calibrated, behind a router, with replicas that stay or come and go."""
