"""Errors that a user can act on: one sentence naming the culprit, what was expected, and the next step."""


class HistillError(Exception):
    """A job failed; the message is meant for its user. Jobs exit with status 1."""


class InputError(HistillError):
    """The user's input (config, credentials, tiles, models) is at fault. Jobs exit with status 2."""


class UnavailableError(InputError):
    """A server does not answer, which may be temporary."""
