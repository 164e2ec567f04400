"""What the commands and the Python functions come to: the only place where the rooms are wired together."""
