"""Azure: one client for each subscription, and on it the source ``azure-monitor``, discovery, sizes and permissions of online endpoints."""
