"""`python -m netsetup`."""

from __future__ import annotations

from netsetup.cli import command


def main() -> None:
    command.main(prog_name="netsetup")


if __name__ == "__main__":
    main()
