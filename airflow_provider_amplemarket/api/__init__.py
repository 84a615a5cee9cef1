"""Amplemarket's API over HTTP. Nothing here knows of Airflow, the archive or the quota."""
