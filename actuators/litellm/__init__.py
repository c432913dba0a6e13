"""The system ``litellm``: a model group of a LiteLLM proxy, through the proxy's own file and a restart."""
