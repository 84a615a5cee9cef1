"""Apache Airflow provider that archives the call recordings of Amplemarket in object storage."""

from __future__ import annotations

__version__ = "0.1.0"
