"""Docker: a container's limits, its arguments by another one in its place, and a service's replicas."""
