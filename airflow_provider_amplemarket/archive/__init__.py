"""The archive in object storage. Nothing here knows of HTTP or the quota."""
