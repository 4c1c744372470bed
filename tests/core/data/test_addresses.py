import pytest

from pixrec_core.data.fetching import is_public, may_connect
from pixrec_core.settings import ImageSettings


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.3",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # cloud metadata
        "168.63.129.16",  # metadata of Azure
        "fd00:ec2::254",
        "100.64.0.1",  # shared by a carrier's customers
        "192.0.2.1",  # for documentation
        "198.18.0.1",  # for benchmarks
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "fec0::1",  # site-local
        "192.0.0.192",  # metadata of Oracle
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",  # 127.0.0.1 behind NAT64
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",  # 127.0.0.1 behind 6to4
        "2002:c0a8:101::1",
    ],
)
def test_other_addresses_are_not_public(address):
    assert not is_public(address)


METADATA = ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%1", "fd00:ec2::254", "fd20:ce::254", "168.63.129.16"]
METADATA += ["192.0.0.192"]
METADATA += ["100.100.100.200", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"]


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("named", [(), ("*",), ("*.*",), ("metadata.google.internal",)])
def test_metadata_addresses_must_be_named(address, named):
    assert not may_connect(address, ImageSettings(allow_private_hosts=True, allow_hosts=named))


@pytest.mark.parametrize(
    ("address", "pattern"),
    [
        ("169.254.169.254", "169.254.169.254"),
        ("169.254.7.7", "169.254.*"),
        ("fd00:ec2::254", "fd00:ec2::254"),
        ("::ffff:169.254.169.254", "169.254.169.254"),
    ],
)
def test_a_named_metadata_address_is_a_private_one(address, pattern):
    assert may_connect(address, ImageSettings(allow_private_hosts=True, allow_hosts=(pattern,)))
    assert not may_connect(address, ImageSettings(allow_hosts=(pattern,)))


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "fc00::1", "192.168.1.1", "8.8.8.8"])
def test_other_private_addresses_need_the_setting_only(address):
    assert may_connect(address, ImageSettings(allow_private_hosts=True))
    assert may_connect(address, ImageSettings()) == (address == "8.8.8.8")
