"""The hourly quota, kept in Airflow's Variables. Nothing here knows of HTTP or the archive."""
