"""Nomad: a group's count and its task's resources, by scale, plan and register, and revert."""
