"""The one exception for what a user can put right."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, with which file or value, and what to do.

    Entry points print it as one line and exit with code 2.
    """
