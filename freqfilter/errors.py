"""The errors that a user can cause."""


class UserError(Exception):
    """What is wrong, where, and what to do, in one line; shown without a traceback."""


class TrainingError(UserError):
    """What ended a training run.

    Attributes:
        diagnosis: Its name in the tag ``diagnosis.<name>``.
    """

    def __init__(self, diagnosis: str, message: str) -> None:
        super().__init__(message)
        self.diagnosis = diagnosis
