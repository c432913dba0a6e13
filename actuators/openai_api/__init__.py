"""OpenAI: a project's rate limits of one model."""
