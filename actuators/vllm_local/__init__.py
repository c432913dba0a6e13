"""vLLM servers as processes on this host: several replicas behind one address."""
