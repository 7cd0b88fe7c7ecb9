"""The errors that reach a user: one sentence that names the thing and says what to do."""

import errno


class AnewError(Exception):
    """Base of every error that anew raises on purpose; the command line prints it without a traceback."""


class UserError(AnewError):
    """Bad input: a file, a flag, an option, a configuration."""


#: How PyTorch says that memory ran out (c10/core/impl/alloc_cpu.cpp); it has no type of its own on the processor.
_NO_MEMORY = "can't allocate memory"


def reason_of(error: BaseException | None) -> AnewError | None:
    """The error of anew's that another one is or wraps, as Dynamo wraps what a backend raises; None where it is none.

    Memory that ran out counts as one, and so does a full disk.
    """
    while error is not None:
        if isinstance(error, AnewError):
            return error
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY in str(error)):
            return AnewError("memory ran out: use smaller batches or shorter rows, or close other programs")
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return AnewError("No space left on device: free some space, or write elsewhere")
        error = getattr(error, "inner_exception", None) or error.__cause__
    return None
