"""``python -m conceptkit``: the command line."""

from conceptkit.cli import main

main()
