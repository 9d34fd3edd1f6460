"""The error for everything that the user can mend."""


class UserError(Exception):
    """Something the user can put right: a mistyped key, a missing file, a full disk.

    The message is one line that says what is wrong and what to do. The command line prints it without a
    traceback and exits with code 2.
    """
