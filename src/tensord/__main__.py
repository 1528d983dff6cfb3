"""`tensord` and `python -m tensord`: the command line, which comes with the extra `server`."""

import importlib.util
import sys


def main() -> None:
    """Run the command line, or say in one line how to install it."""
    if importlib.util.find_spec("typer") is None:
        sys.exit("tensord: only the client is installed; the daemon and its commands: pip install 'tensord[server]'")
    from tensord.daemon.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
