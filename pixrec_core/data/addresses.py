"""Which network addresses a URL from a catalogue may lead to.

A catalogue is written by strangers, and the machine that downloads stands inside somebody's
network: `http://169.254.169.254/` in an image column must reach nothing.
"""

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address, as `getaddrinfo` writes it, is one of the open internet.

    Private, loopback, link-local, shared, reserved, multicast and unspecified addresses are not,
    nor are IPv6 addresses that carry one of those inside.
    """
    ip = _carried(ipaddress.ip_address(address))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _carried(ip: Address) -> Address:
    """The IPv4 address inside an IPv6 one that is mapped (`::ffff:`), 6to4 or NAT64; else the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
