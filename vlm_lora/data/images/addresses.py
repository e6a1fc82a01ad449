"""Which internet addresses an image may be fetched from: public ones, and none that leads inside by another name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

_INSIDE_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this machine
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' own (and one cloud's metadata)
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, although the number is public
        "169.254.0.0/16",  # link-local: the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays into IPv6
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_6 = IPv6Network("2000::/3")
"""All that is assigned as global unicast. ::1, mapped IPv4, NAT64, private, link-local and multicast lie outside."""
_INSIDE_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols, Teredo among them: an IPv4 address inside
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
)


def is_public(address: Address) -> bool:
    """Tell whether an address belongs to the public internet.

    The tables are written out because what `ipaddress.is_global` says has changed between Python's versions;
    both must agree. Forms of IPv6 that carry an IPv4 address are refused whatever they carry.

    >>> is_public(IPv4Address("93.184.215.14")), is_public(IPv6Address("::ffff:93.184.215.14"))
    (True, False)
    """
    if isinstance(address, IPv4Address):
        inside = any(address in network for network in _INSIDE_4)
    else:
        inside = address not in _GLOBAL_6 or any(address in network for network in _INSIDE_6)
    return not inside and address.is_global and not address.is_multicast
