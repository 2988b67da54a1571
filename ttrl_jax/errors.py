"""The one exception that a user can cause."""


class InputError(Exception):
    """Something the user gave cannot be used. The message says what was expected, what came, and what to change.

    Commands print it as one line and leave with exit code 2; nothing has been written by then.
    """
