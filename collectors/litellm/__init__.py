"""A LiteLLM proxy: what its metrics and its management API tell."""
