"""A pay-per-token API behind rate limits."""
