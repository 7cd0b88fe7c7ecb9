"""The errors that reach a user: one sentence that names the thing and says what to do."""


class AnewError(Exception):
    """Base of every error that anew raises on purpose; the command line prints it without a traceback."""


class UserError(AnewError):
    """Bad input: a file, a flag, an option, a configuration."""
