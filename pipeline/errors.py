"""The one error that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The message says what was found, what was expected, and what to do."""


def reason(error: BaseException) -> str:
    """What was raised, and what that came from first: libraries that import late hide it."""
    first = error
    while (before := first.__cause__ or (None if first.__suppress_context__ else first.__context__)) is not None:
        first = before
    message = f"{type(error).__name__}: {error}"
    return message if first is error else f"{message}; at first {type(first).__name__}: {first}"
