"""`python -m torch_trackckpt doctor` says what this installation has and what it lacks."""

from __future__ import annotations

import argparse

from torch_trackckpt.doctor import diagnosis

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs a command.

    Args:
        arguments: those of the command line; None for this process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m torch_trackckpt")
    commands = parser.add_subparsers(required=True)
    doctor = commands.add_parser("doctor", help="what this installation has and what it lacks")
    doctor.set_defaults(command=lambda: print(diagnosis()))
    parser.parse_args(arguments).command()


if __name__ == "__main__":
    main()
