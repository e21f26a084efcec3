"""Rate limits of log-ins and sign-ups: buckets in the database, shared by all processes of the API.

Wrong passwords count per client address, and per account and client address together: an attacker elsewhere cannot lock
an account. A wider bucket counts all passwords of an account from an address, right ones included. Wrong passwords for
an account from all addresses only delay its log-ins. Unknown accounts count alike; refused attempts do not count.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass

from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import TooManyRequests

_MINUTE, _HOUR = 60, 3600
_DELAY_SECONDS_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """`most` attempts in `seconds`, for the hash `key`."""

    key: str
    most: int
    seconds: int


@dataclass(frozen=True, slots=True)
class LogIn:
    """One attempt to log in.

    Args:
        address: the client's, from the connection or a trusted proxy.
        email: as sent.
    """

    address: str
    email: str

    def buckets(self, limits: Limits) -> tuple[Bucket, Bucket]:
        """The buckets of the client address, and of the account from that address."""
        return (
            Bucket(_key("log in", network_of(self.address)), limits.logins_per_address, _MINUTE),
            Bucket(_key("log in", network_of(self.address), self.email.lower()), limits.logins_per_account, _MINUTE),
        )

    def wide_bucket(self, limits: Limits) -> Bucket:
        """The bucket of the account from that address, right passwords included."""
        key = _key("log in, right or wrong", network_of(self.address), self.email.lower())
        return Bucket(key, limits.right_logins_per_account, _MINUTE)

    def slow_bucket(self, limits: Limits) -> Bucket:
        """The bucket of the account from all addresses."""
        return Bucket(_key("account", self.email.lower()), limits.logins_before_delay, _MINUTE)


async def may_log_in(session: Session, attempt: LogIn, limits: Limits) -> float:
    """Count the attempt; returns the seconds to delay its answer. `session` is anonymous (`anon`).

    Raises TooManyRequests; `retry_after` says when the next attempt is allowed.
    """
    buckets = [*attempt.buckets(limits), attempt.wide_bucket(limits)]
    await _take(session, buckets, "too many attempts to log in; try again later")
    return min(_DELAY_SECONDS_MAX, await _wait(session, [attempt.slow_bucket(limits)]))


async def was_right(session: Session, attempt: LogIn, limits: Limits) -> None:
    """Uncount an attempt with the right password, except in the wide bucket. `session` is anonymous."""
    given = [*attempt.buckets(limits), attempt.slow_bucket(limits)]
    await session.run("select private.give_attempt_back(%s, %s, %s)", _columns(given))


async def may_sign_up(session: Session, address: str, limits: Limits) -> None:
    """Count a new account. `session` is anonymous. Raises TooManyRequests."""
    bucket = Bucket(_key("sign up", network_of(address)), limits.sign_ups_per_address, _HOUR)
    await _take(session, [bucket], "too many new accounts from your network; try again later")


def network_of(address: str) -> str:
    """The network that counts as one client: an IPv4 address, the /64 of an IPv6 one, or any other text itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


async def _take(session: Session, buckets: Sequence[Bucket], message: str) -> None:
    seconds = await _wait(session, buckets)
    if seconds > 0:
        raise TooManyRequests(message, retry_after=math.ceil(seconds))


async def _wait(session: Session, buckets: Sequence[Bucket]) -> float:
    row = await session.one("select private.take_attempt(%s, %s, %s) as seconds", _columns(buckets))
    return float(row["seconds"])


def _columns(buckets: Sequence[Bucket]) -> list[list[str] | list[int]]:
    return [[each.key for each in buckets], [each.most for each in buckets], [each.seconds for each in buckets]]


def _key(*names: str) -> str:
    text = "\x1f".join(names).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()
