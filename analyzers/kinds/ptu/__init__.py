"""Purchased throughput."""
