"""systemd: services of this host, by ``systemctl``."""
