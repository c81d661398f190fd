"""What goes wrong with a guest."""


class GuestError(Exception):
    """Why there is no such guest, in one line."""
