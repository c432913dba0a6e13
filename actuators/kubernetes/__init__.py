"""Workloads of a Kubernetes cluster: replicas, an autoscaler's bounds and targets, engine limits, CPU and memory."""
