"""Docker: containers of one host, and services of a swarm."""
