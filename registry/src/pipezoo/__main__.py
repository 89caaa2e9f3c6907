"""`python -m pipezoo` is the `pipezoo` command."""

from pipezoo.cli.main import app

app()
