"""Which kind of deployment: options with their conditions, and with numbers under a workload. Prices and models are given; owns neither."""
