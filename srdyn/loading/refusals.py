"""Errors that a user can mend, in one line of ours, from whatever library they came."""

import contextlib
import sys
from collections.abc import Iterator

MENDED_BY_USERS = (ValueError, OSError, MemoryError, FloatingPointError, ModuleNotFoundError)
"""What srdyn raises for what a user can get wrong; all else is a fault of ours, and shows where."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its kind where it says nothing, or only names what is missing."""
    said = " ".join(str(error).split())
    return said if said and not isinstance(error, KeyError) else f"{type(error).__name__} {said}".strip()


@contextlib.contextmanager
def within(what: str) -> Iterator[None]:
    """While this is open, what a library raises, files and memory aside, becomes a ValueError of a line on `what`."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{what}: {one_line(error)}") from error


@contextlib.contextmanager
def door() -> Iterator[None]:
    """Around a command: what a user can mend ends it with a line and status 2 (interrupted: 130); -X dev shows all."""
    try:
        yield
    except MENDED_BY_USERS as error:
        if sys.flags.dev_mode:
            raise
        print(one_line(error), file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("interrupted: what is kept on the way is used when the same command is given again", file=sys.stderr)
        raise SystemExit(130) from None
