"""OSCAR: its services, what their deployments and jobs say, through the cluster's API."""
