"""Which addresses a client may put into an image part.

Whoever answers may fetch them from inside our network, so only `https:`, `http:` and `data:` addresses pass, and none
that names this machine or a private network outright. A public name that resolves to a private address can only be
caught where it is resolved: by the engine's own media settings.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from urllib.parse import urlsplit

from router.errors import BadRequest

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".localdomain")
_LOCAL_NAMES = frozenset({"localhost", "local", "internal", "localdomain"})
# What inet_aton takes besides four decimals: 2130706433, 0x7f.1, 0177.0.0.1, 127.1
_LOOSE_IPV4 = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]*|[0-9]+)){0,3}")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_MAX_URL_CHARS = 8192


def check_media_url(url: str, param: str) -> None:
    """Raise `BadRequest` on `param` unless `url` is inline data or names a public host."""
    if url[:5].lower() == "data:":
        return
    if len(url) > _MAX_URL_CHARS:
        raise _refused(param, f"is longer than {_MAX_URL_CHARS} characters")
    # Parsers disagree on these; a host must not depend on who reads it.
    if "\\" in url or not url.isprintable() or " " in url:
        raise _refused(param, "holds a blank, a backslash or a control character")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise _refused(param, "is not a valid address") from None
    if parts.scheme not in ("http", "https"):
        raise _refused(param, "must begin with https://, http:// or data:")
    if not host:
        raise _refused(param, "names no host")
    if "@" in parts.netloc:
        raise _refused(param, "must not hold a user name or password")
    if not _is_public(host):
        raise _refused(param, "names this machine or a private network; send the image inline as data:")


def _is_public(host: str) -> bool:
    # Resolvers fold look-alikes first: a full-width 127.0.0.1 is 127.0.0.1.
    host = unicodedata.normalize("NFKC", host).replace("\u3002", ".").rstrip(".").lower()
    if host in _LOCAL_NAMES or host.endswith(_LOCAL_SUFFIXES):
        return False
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host)
    except ValueError:
        if _LOOSE_IPV4.fullmatch(host) is None:
            return not host.isdigit()
        loose = _loose_ipv4(host)
        if loose is None:
            return False
        address = loose
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        else:
            address = address.ipv4_mapped or address.sixtofour or address
    return address.is_global and not address.is_multicast


def _loose_ipv4(host: str) -> ipaddress.IPv4Address | None:
    """The address inet_aton would read in `host`, `None` when it overflows."""
    try:
        numbers = [_loose_number(part) for part in host.split(".")]
    except ValueError:
        return None
    *leading, last = numbers
    if any(n > 255 for n in leading) or last >= 256 ** (5 - len(numbers)):
        return None
    value = last
    for position, n in enumerate(leading):
        value += n << (8 * (3 - position))
    return ipaddress.IPv4Address(value)


def _loose_number(part: str) -> int:
    if part[:2].lower() == "0x":
        return int(part[2:] or "0", 16)
    return int(part, 8) if len(part) > 1 and part[0] == "0" else int(part)


def _refused(param: str, what: str) -> BadRequest:
    return BadRequest(f"{param} {what}", code="invalid_media_url", param=param)
