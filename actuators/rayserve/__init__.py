"""The system ``ray-serve``: a deployment of a Ray Serve application, by the external scaler where it is enabled, else by its configuration."""
