"""`python -m aim_engine` is `aim-engine`."""

from aim_engine.cli.main import main

main()
