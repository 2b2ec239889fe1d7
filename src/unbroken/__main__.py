"""``python -m unbroken``: the command, for places where its script is not on the path."""

from unbroken.cli import main

main()
