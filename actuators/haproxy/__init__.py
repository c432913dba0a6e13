"""The system ``haproxy``: a backend's servers, weights and limits, through the runtime API, and its file after the verdict."""
