"""Options that are wrong end the program with a line that says what is allowed; no option is taken in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tunnel import run_mitmdump


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("kube_retry_max=abc", "kube_retry_max: .*abc"),
        ("kube_retry_max=-5", "kube_retry_max: -5 is less than 0"),
        ("kube_response_header_timeout=0", "kube_response_header_timeout: 0 is less than 1ms"),
        ("kube_nonsense=1", "kube_nonsense: there is no such option; there are .*kube_zone"),
        ("kube_zone=bad..zone", "kube_zone: 'bad..zone' is not a DNS zone"),
        ("kube_zone=", "kube_zone: '' is not a DNS zone"),
        ("kube_services=api", "kube_services: 'api' is not NAME.NAMESPACE"),
        ("kube_services=api.shop:x", "kube_services: 'api.shop:x': 'x' is not a port"),
        ("kube_services=api.shop colour=red", "kube_services: api.shop: 'colour' is none of port|app_protocol"),
        ("kube_services=api.shop app_protocol=gopher", "app_protocol='gopher' is none of h2c"),
        ("kube_services=api.shop passthrough=yes", "passthrough='yes' is neither true nor false"),
        ("kube_services=api.shop ca_file=/nonexistent", "ca_file='/nonexistent' is no file"),
        (f"kube_services=api.shop ca_file={__file__}", "ca_file='.*' does not have certificates in PEM"),
        (f"kube_services=api.shop client_certificate={__file__}", "client_certificate='.*' does not have a"),
    ],
)
def test_a_wrong_option_ends_the_program(option: str, told: str, tmp_path: Path) -> None:
    status, said = run_mitmdump(tmp_path, "-p", "0", "--set", option)
    assert status == 1
    assert "Traceback" not in said
    assert re.search(told, said), said
