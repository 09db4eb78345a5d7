"""The one error that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The message says what was found, what was expected, and what to do."""
