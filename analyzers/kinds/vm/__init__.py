"""A plain VM endpoint: the universal scalability law."""
