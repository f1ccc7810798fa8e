"""Requests, time and traffic: protocol, routing, scheduling and metrics. Never imports torch."""
