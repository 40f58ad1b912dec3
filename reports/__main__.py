"""`python -m reports`: the commands of `reports.commands`."""

from __future__ import annotations

import io
import sys


def main() -> int:
    """Run a command; 2 if the program itself cannot be imported, since 1 would say that the run failed."""
    try:
        from reports.commands import main as command
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error: the report cannot be imported: {line}", file=sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may not be in the encoding of the terminal
    return command()


if __name__ == "__main__":
    sys.exit(main())
