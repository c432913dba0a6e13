"""Ray Serve: its applications by the dashboard's REST API, and Ray's metrics of them."""
