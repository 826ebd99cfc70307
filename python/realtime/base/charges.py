"""Bytes that one collection holds, by who caused them: the one rule by which Python's collections are bounded.

A collection asks for room before it takes a thing in, charges what it has taken and gives that back when the thing
goes. What there is no room for is refused or makes the collection let go of something; both are counted. Entries are as
many as those who hold something, so the table is bounded by what it counts.

Made by `memory.Ledger`; called by each collection, on the loop's thread.
"""


class Charges:
    """What a collection holds, in all and for each user.

    Args:
        bytes_max: bytes that it may hold.
        share_max: bytes that one user may hold of them.
    """

    __slots__ = ("_by_user", "bytes", "bytes_max", "refused", "share_max")

    def __init__(self, bytes_max: int, share_max: int) -> None:
        self.bytes_max = bytes_max
        self.share_max = share_max
        self.bytes = 0
        self.refused = 0
        """What there was no room for."""
        self._by_user: dict[str, int] = {}

    def of(self, user: str | None) -> int:
        """Return the bytes that a user holds; 0 for the server itself and for services, which have no share."""
        return 0 if user is None else self._by_user.get(user, 0)

    def is_over_share(self, user: str | None, size: int = 0) -> bool:
        """Whether a user would hold more than a share with `size` bytes more; a first thing may be of any size."""
        held = self.of(user)
        return held > 0 and held + size > self.share_max

    def has_room(self, user: str | None, size: int) -> bool:
        """Whether there is room for `size` bytes more of a user."""
        return self.bytes + size <= self.bytes_max and not self.is_over_share(user, size)

    def take(self, user: str | None, size: int) -> None:
        """Charge `size` bytes to a user."""
        self.bytes += size
        if user is not None:
            self._by_user[user] = self._by_user.get(user, 0) + size

    def give(self, user: str | None, size: int) -> None:
        """Give back what `take` charged."""
        self.bytes -= size
        if user is None:
            return
        left = self._by_user[user] - size
        if left:
            self._by_user[user] = left
        else:
            del self._by_user[user]
