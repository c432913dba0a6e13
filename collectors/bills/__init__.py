"""Cost reports of vendors and gateways that bill by the token."""
