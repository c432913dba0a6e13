"""Git repositories: what is deployed as files, and branches on which changes are proposed."""
