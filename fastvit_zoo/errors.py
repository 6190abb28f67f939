"""The one error of the zoo."""


class ZooError(Exception):
    """Something the caller gave cannot be used; the message says what, what was needed, where, and what to do."""
