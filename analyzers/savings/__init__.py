"""What a change saved: the traffic that really came, on the shape that was given up."""
