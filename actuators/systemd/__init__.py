"""systemd: a service's environment file, and its restart."""
