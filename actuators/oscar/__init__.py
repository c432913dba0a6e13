"""OSCAR: a service's scale and resources, through its whole definition."""
