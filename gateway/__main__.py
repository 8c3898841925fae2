"""``python -m gateway`` and the ``gateway`` command are the same."""

from __future__ import annotations

from gateway.cli.root import cli


def main() -> None:
    """Runs the command line."""
    cli(prog_name="gateway")


if __name__ == "__main__":
    main()
