"""Open the storage that a path and a connection name; an error says which setting to change."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from urllib.parse import urlsplit

import tenacity
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, ObjectStoragePath

from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, ConnectionNotDefinedError

#: Which extra of the package brings a scheme, and what has to be importable for it.
_AMAZON = ("s3", ("airflow.providers.amazon", "s3fs"))
_GOOGLE = ("gcs", ("airflow.providers.google", "gcsfs"))
_AZURE = ("azure", ("airflow.providers.microsoft.azure", "adlfs"))
_EXTRAS = {
    "s3": _AMAZON,
    "s3a": _AMAZON,
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "adl": _AZURE,
}
_LOCAL = ("file", "local")

_ATTEMPTS = 3


def open_storage(path: str, conn_id: str | None = None) -> ObjectStoragePath:
    """Return the path, with a file system that can be used.

    :param path: a folder in a storage, as Airflow writes object-storage paths.
    :param conn_id: the storage's connection, an alternative to the user part of ``path``.
    :raises AmplemarketConfigurationError: when there is no such storage or connection, or its client is not installed.
    """
    path = str(path)
    scheme = path.partition("://")[0].lower()
    if "://" not in path:  # not what a template of nothing renders, nor a folder of whatever worker it is
        raise AmplemarketConfigurationError(
            f"path={path!r} must begin with a scheme: s3://, gs://, abfs:// or file:///"
        )
    try:
        named = urlsplit(path).netloc.rpartition("@")[0]
        wanted = conn_id or named
        if wanted and scheme not in _LOCAL:
            _check_connection(path, conn_id, wanted)
        # Before 3.2, Airflow prefers a None given here to the connection that the path names.
        given = {"conn_id": conn_id} if conn_id else {}
        storage = ObjectStoragePath(path, **given)
        _ = storage.fs
    except (ImportError, ValueError) as error:
        if isinstance(error, AmplemarketConfigurationError):
            raise
        raise AmplemarketConfigurationError(f"path={path!r} cannot be used: {_reason(scheme, error)}") from None
    return storage


def _check_connection(path: str, conn_id: str | None, wanted: str) -> None:
    """Look for the connection here: some of Airflow's file systems go on without it, and are refused later."""
    # Airflow 3 says that there is no such connection also when its API server merely had a hiccup.
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(AirflowNotFoundException),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=0.5),
        reraise=True,
    )
    try:
        retrying(BaseHook.get_connection, wanted)
    except AirflowNotFoundException:
        where = f"storage_conn_id={conn_id!r}" if conn_id else f"path={path!r}"
        raise ConnectionNotDefinedError(
            f"{where} names the connection {wanted!r}, which is not there: make it in Airflow's UI or with "
            f"`airflow connections add {wanted}`, or name another"
        ) from None


def _reason(scheme: str, error: Exception) -> str:
    if scheme in _LOCAL:
        return str(error)
    if scheme not in _EXTRAS:
        return f"{error}. Schemes that are known: {', '.join(sorted((*_EXTRAS, *_LOCAL)))}"
    extra, modules = _EXTRAS[scheme]
    if all(map(_is_importable, modules)):
        return str(error)
    return f"{scheme}:// needs more packages; install airflow-provider-amplemarket[{extra}]"


def _is_importable(module: str) -> bool:
    with suppress(ModuleNotFoundError):  # of its parents
        return importlib.util.find_spec(module) is not None
    return False
