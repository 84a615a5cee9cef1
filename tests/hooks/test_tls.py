"""TLS: a server that cannot prove who it is never sees the key."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_provider_amplemarket.api.deadline import Watchdog
from airflow_provider_amplemarket.exceptions import AmplemarketConnectionError
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from tests.api.servers import KEY, RawServer, page, raw


def certificate(directory: Path, address: str) -> Path:
    """Write a certificate that vouches for itself, with its private key, for a server at that address."""
    server: x509.GeneralName = x509.DNSName(address)
    with suppress(ValueError):
        server = x509.IPAddress(ip_address(address))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sandbox")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([server]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = directory / f"{address}.pem"
    path.write_bytes(secret + made.public_bytes(pem))
    return path


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RawServer, Path]]:
    """Give a server with TLS, and its certificate."""
    path = certificate(tmp_path, request.param)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    server = RawServer(page())
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    server._http.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.url = server.url.replace("http:", "https:")
    with server:
        yield server, path


@pytest.fixture
def hook(server: tuple[RawServer, Path], monkeypatch: pytest.MonkeyPatch) -> AmplemarketHook:
    """Give a hook whose connection names the server."""
    connection = {"conn_type": "amplemarket", "host": server[0].url, "password": KEY}
    monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(connection))
    monkeypatch.setattr(Watchdog, "sleep", lambda *_: None)
    return AmplemarketHook()


def use(hook: AmplemarketHook, target: Path) -> tuple[str, str]:
    """Ask for the list and for a recording, and return the errors."""
    with pytest.raises(AmplemarketConnectionError) as listing:
        list(hook.iter_calls())
    with pytest.raises(AmplemarketConnectionError) as download:
        hook.download_recording("abc", target)
    return str(listing.value), str(download.value)


@pytest.mark.parametrize("server", ["127.0.0.1"], indirect=True)
def test_a_server_whose_certificate_nobody_vouches_for_is_asked_for_nothing(
    server: tuple[RawServer, Path], hook: AmplemarketHook, tmp_path: Path
) -> None:
    for message in use(hook, tmp_path / "abc"):
        assert "certificate verify failed" in message
    ok, message = hook.test_connection()
    assert not ok
    assert "certificate verify failed" in message
    assert server[0].seen == []


@pytest.mark.parametrize("server", ["127.0.0.2"], indirect=True)
def test_a_certificate_of_another_server_is_not_enough(
    server: tuple[RawServer, Path], hook: AmplemarketHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server[1]))
    for message in use(hook, tmp_path / "abc"):
        assert "not valid for '127.0.0.1'" in message
    assert server[0].seen == []


@pytest.mark.parametrize("server", ["127.0.0.1"], indirect=True)
def test_an_authority_of_ones_own_is_named_in_the_environment(
    server: tuple[RawServer, Path], hook: AmplemarketHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server[1]))
    assert list(hook.iter_calls()) == []
    server[0].responses[:] = [raw(b"\xff\xfb\x90\x00" + bytes(400))]
    assert hook.download_recording("abc", tmp_path / "abc").size == 404
    assert [headers["Authorization"] for _, headers in server[0].seen] == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("server", ["xn--bcher-kva.example"], indirect=True)
@pytest.mark.parametrize("name", ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example"])
def test_a_server_with_an_international_name_gets_the_key(
    server: tuple[RawServer, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo
    asked: list[object] = []

    def as_dns_does(host: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        return look_up("127.0.0.1" if host == "xn--bcher-kva.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", as_dns_does)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server[1]))
    base = server[0].url.replace("127.0.0.1", name)
    connection = {"conn_type": "amplemarket", "host": base, "password": KEY}
    monkeypatch.setenv("AIRFLOW_CONN_AMPLEMARKET_DEFAULT", json.dumps(connection))
    server[0].responses[:] = [
        page({"id": "a"}, _links={"next": {"href": f"{base}/calls?page=2"}}),
        page({"id": "b"}),
        raw(b"\xff\xfb\x90\x00" + bytes(400)),
    ]
    hook = AmplemarketHook()
    assert [call["id"] for call in hook.iter_calls()] == ["a", "b"]
    hook.download_recording("abc", tmp_path / "abc")
    assert [headers["Authorization"] for _, headers in server[0].seen] == [f"Bearer {KEY}"] * 3
    assert set(asked) == {"xn--bcher-kva.example"}
