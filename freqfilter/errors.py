"""The errors that a user can cause."""


class UserError(Exception):
    """What is wrong, where, and what to do, in one line; shown without a traceback."""
