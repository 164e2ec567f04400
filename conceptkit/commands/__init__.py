"""What each command does: options as a dataclass, and what is run with them."""
