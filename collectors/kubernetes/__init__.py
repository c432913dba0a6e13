"""A Kubernetes cluster: its client, what runs in it, who owns what, and what Flyball may do there."""
