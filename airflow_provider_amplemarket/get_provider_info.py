"""What Airflow reads of this provider."""

from __future__ import annotations

from typing import Any

from airflow_provider_amplemarket import __version__

#: The form fields that the connection keeps in Extra. The schema is JSON Schema, as Airflow 3.2 reads it.
CONNECTION_FIELDS: dict[str, Any] = {
    "recording_limit": {
        "label": "Recording limit (requests)",
        "description": "Requests to the recording endpoint that the account may send per period.",
        "schema": {"type": ["integer", "null"], "default": 50, "minimum": 1},
    },
    "recording_period": {
        "label": "Recording period (seconds)",
        "description": "The period that the recording limit is for.",
        "schema": {"type": ["number", "null"], "default": 3600, "exclusiveMinimum": 0},
    },
    "timeout": {
        "label": "Time-out (seconds)",
        "description": "Time for connecting, and for each read.",
        "schema": {"type": ["number", "null"], "default": 60, "exclusiveMinimum": 0},
    },
}


def get_provider_info() -> dict[str, Any]:
    """Describe the provider; Airflow finds this function through the package's entry point."""
    return {
        "package-name": "airflow-provider-amplemarket",
        "name": "Amplemarket",
        "description": "Archive the call recordings of `Amplemarket <https://www.amplemarket.com/>`__.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": "Amplemarket",
                "external-doc-url": "https://docs.amplemarket.com/",
                "tags": ["service"],
            }
        ],
        "hooks": [
            {
                "integration-name": "Amplemarket",
                "python-modules": ["airflow_provider_amplemarket.hooks.amplemarket"],
            }
        ],
        "operators": [
            {
                "integration-name": "Amplemarket",
                "python-modules": ["airflow_provider_amplemarket.operators.recording"],
            }
        ],
        "triggers": [
            {
                "integration-name": "Amplemarket",
                "python-modules": ["airflow_provider_amplemarket.triggers.quota"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "amplemarket",
                "hook-class-name": "airflow_provider_amplemarket.hooks.amplemarket.AmplemarketHook",
                "hook-name": "Amplemarket",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "port", "schema"],
                    "relabeling": {"host": "Base URL", "password": "API key"},
                    "placeholders": {"host": "https://api.amplemarket.com"},
                },
                "conn-fields": CONNECTION_FIELDS,
            }
        ],
        "config": {
            "amplemarket": {
                "description": "Settings of the Amplemarket provider.",
                "options": {
                    "create_pool": {
                        "description": (
                            "Whether the scheduler and the triggerer make sure at their start that the pool "
                            "``amplemarket_recordings`` exists."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    }
                },
            }
        },
    }
