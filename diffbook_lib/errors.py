"""The library's own errors: what they say is meant for the user, in place of a traceback."""


class DiffbookError(Exception):
    """Base of all of them; the message names the value, what was allowed, and what to do."""


class Refused(DiffbookError, ValueError):
    """What was asked for cannot be done, and nothing was started or written."""


class Failed(DiffbookError, RuntimeError):
    """What was started did not reach its end; what was good before is still there."""


class Stopped(DiffbookError, RuntimeError):
    """Its user stopped it; the same command continues."""
