"""Instances that start on demand and go when idle."""
