"""`python -m pipezoo` is the `pipezoo` command."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command. Ctrl-C ends it quietly even before it is read."""
    try:
        from pipezoo.cli.main import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
