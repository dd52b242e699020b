"""``python -m segbatch``."""

from segbatch.cli.main import main

main()
