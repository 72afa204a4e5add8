"""`python -m es_service.cli`: the command, where its script is not on the path."""

from es_service.cli import command

command()
