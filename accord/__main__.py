"""`python -m accord`: the command `accord`, for launchers that start a module."""

from accord.cli.main import main

main(prog_name="accord")
