"""Errors that a user can cause."""

import re

CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")


def without_credentials(text: str) -> str:
    """Remove user names and passwords from all addresses in a text.

    >>> without_credentials("postgresql://me:secret@host/db")
    'postgresql://host/db'
    """
    return CREDENTIALS.sub("", text)


def one_line(error: object, *, max_length: int = 200) -> str:
    """Message of an error on one line of at most ``max_length`` characters, without credentials."""
    return " ".join(without_credentials(str(error)).split())[:max_length]


def printable(text: object) -> str:
    r"""Text of a program that is not trusted, on one line, with control characters as escape sequences.

    >>> print(printable("\x1b[31mred\nand more"))
    \x1b[31mred and more
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in one_line(text))


class UserError(Exception):
    """Error on one line: what is wrong, where, and what to do. Printed without traceback and credentials."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(without_credentials(message).splitlines()))  # user input may contain line breaks


class TrainingError(UserError):
    """Error that ends a training run.

    Attributes:
        diagnosis: Name of the problem in the tag ``diagnosis.<name>``.
    """

    def __init__(self, diagnosis: str, message: str) -> None:
        super().__init__(message)
        self.diagnosis = diagnosis


def install_hint(extra: str) -> str:
    """Command that installs a missing extra."""
    return f"pip install 'freqfilter[{extra}]', or in a checkout pip install -c constraints.txt -e '.[{extra}]'"
