"""Options of the commands: each declared once."""
