"""The errors that a user can cause."""

import re

CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")


def without_credentials(text: str) -> str:
    """The text with no user's name and password in any address that it holds.

    >>> without_credentials("postgresql://me:secret@host/db")
    'postgresql://host/db'
    """
    return CREDENTIALS.sub("", text)


def one_line(error: object, *, most: int = 200) -> str:
    """What an error says, in one line of so many characters, without credentials."""
    return " ".join(without_credentials(str(error)).split())[:most]


class UserError(Exception):
    """What is wrong, where, and what to do, in one line; shown without a traceback, and without credentials."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(without_credentials(message).splitlines()))  # what a user typed may hold line breaks


class TrainingError(UserError):
    """What ended a training run.

    Attributes:
        diagnosis: Its name in the tag ``diagnosis.<name>``.
    """

    def __init__(self, diagnosis: str, message: str) -> None:
        super().__init__(message)
        self.diagnosis = diagnosis


def install_hint(extra: str) -> str:
    """What to type where an extra is missing."""
    return f"pip install 'freqfilter[{extra}]', or in a checkout pip install -c constraints.txt -e '.[{extra}]'"
