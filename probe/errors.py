"""The one exception that means: the input cannot be analysed."""


class InputError(Exception):
    """Says in one line what is wrong with the user's input, and where.

    The command line prints it without a traceback and exits with code 2.
    """
