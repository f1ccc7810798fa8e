"""Clients that measure a running gateway. They speak HTTP only and import none of the other packages."""
