"""Storage that cannot be used is a mistake in a setting, told in one line."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import pytest
import tenacity

from airflow_provider_amplemarket.archive.storage import open_storage
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError

AWS = json.dumps({"conn_type": "aws", "login": "AKIAEXAMPLE", "password": "secretsecret"})


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", made.append)
    return made


def told(path: str, conn_id: str | None = None) -> str:
    with pytest.raises(AmplemarketConfigurationError) as caught:
        open_storage(path, conn_id)
    text = "".join(traceback.format_exception(caught.value))
    assert text.count("Traceback") == 1, "one error, and not all of those behind it"
    return str(caught.value)


@pytest.mark.parametrize("path", ["", "  ", "\n", "None", "recordings", "/data/recordings", "C:\\recordings"])
def test_path_without_a_scheme_is_refused(path: str) -> None:
    assert "must begin with a scheme" in told(path)


@pytest.mark.parametrize("path", ["nowhere://bucket/x", "nowhere://conn@bucket/x", "http://bucket/x"])
def test_unknown_scheme_is_refused_with_those_that_are_known(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CONN", AWS)
    expected = "Schemes that are known: abfs, abfss, adl, file, gcs, gs, local, s3, s3a"
    assert told(path).startswith(f"path={path!r} cannot be used: ")
    assert told(path).endswith(expected)


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [
        ("s3", "s3fs", "s3"),
        ("s3a", "s3fs", "s3"),
        ("gs", "gcsfs", "gcs"),
        ("gcs", "gcsfs", "gcs"),
        ("abfs", "adlfs", "azure"),
        ("abfss", "adlfs", "azure"),
    ],
)
@pytest.mark.parametrize("user", ["", "storage_missing_extra@"])
def test_missing_package_is_named_by_its_extra(
    scheme: str, package: str, extra: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_STORAGE_MISSING_EXTRA", AWS)
    monkeypatch.setitem(sys.modules, package, None)
    path = f"{scheme}://{user}bucket/recordings"
    assert told(path) == (
        f"path={path!r} cannot be used: {scheme}:// needs more packages; install airflow-provider-amplemarket[{extra}]"
    )


def test_what_a_client_says_of_a_connection_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"service_config": {"s3": {"signer": "nobody"}}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_ODD", json.dumps({"conn_type": "aws", "extra": extra}))
    assert told("s3://aws_odd@bucket/x") == "path='s3://aws_odd@bucket/x' cannot be used: Signer not available: nobody"


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
@pytest.mark.parametrize(
    ("path", "conn_id", "where"),
    [
        ("{}://no_such_connection@bucket/x", None, "path='{}://no_such_connection@bucket/x'"),
        ("{}://bucket/x", "no_such_connection", "storage_conn_id='no_such_connection'"),
        ("{}://aws_other@bucket/x", "no_such_connection", "storage_conn_id='no_such_connection'"),
    ],
)
def test_missing_connection_is_named_with_where_it_is_named(
    scheme: str, path: str, conn_id: str | None, where: str, pauses: list[float], airflow_db: Path
) -> None:
    assert told(path.format(scheme), conn_id) == (
        f"{where.format(scheme)} names the connection 'no_such_connection', which is not there: make it in Airflow's "
        "UI or with `airflow connections add no_such_connection`, or name another"
    )
    assert pauses == [0.5, 1.0]


def test_connection_that_airflow_finds_only_when_asked_again_is_taken(
    monkeypatch: pytest.MonkeyPatch, airflow_db: Path
) -> None:
    def come(_: float) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_AWS_LATE", AWS)

    monkeypatch.setattr(tenacity.nap.time, "sleep", come)
    assert open_storage("s3://aws_late@bucket/x").fs.protocol[0] == "s3"


def test_local_disk_needs_no_connection(tmp_path: Path) -> None:
    assert open_storage(f"file://{tmp_path}", "no_such_connection").fs.protocol[0] == "file"
