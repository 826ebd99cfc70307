"""What can go wrong for a client; each keeps its facts as fields. Raised by `connection` alone."""


class ClientError(Exception):
    """Any failure of this client."""


class NotConnected(ClientError):  # noqa: N818 -- the state, as the caller meets it
    """No connection came to be: the server is not there, or it refused.

    Attributes:
        status: the HTTP status it refused with, None where nothing answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ConnectionEnded(ClientError):  # noqa: N818 -- the event, as the caller meets it
    """The connection is over.

    Attributes:
        code: the close code (RFC 6455 §7.4); 1006 where the socket just ended.
        reason: what the server said, may be empty.
        may_come_back: whether connecting again can help.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the connection ended with {code}{f' {reason}' if reason else ''}")
        self.code = code
        self.reason = reason

    @property
    def may_come_back(self) -> bool:
        """Codes from 4500 on mean: do not; so does a plain end."""
        return self.code != 1000 and not 4500 <= self.code <= 4999


class CommandFailed(ClientError):  # noqa: N818 -- the event, as the caller meets it
    """The server answered a command by `error`.

    Attributes:
        code: why, in the protocol's words, such as `forbidden`; `timeout` also where no answer came.
        message: what the server said.
        retryable: whether the same command may succeed later.
        path: the field at fault in the form `data.choice`, where one is.
    """

    def __init__(self, code: str, message: str, *, retryable: bool, path: str | None = None) -> None:
        super().__init__(f"{message} ({code}{f' at {path}' if path else ''})")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.path = path
