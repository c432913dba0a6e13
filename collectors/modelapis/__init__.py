"""The APIs of models' providers, by their admin side: usage minute by minute, and rate limits. OpenAI and Anthropic."""
