"""Mipgate beside other servers: cost per request, a real model, overload. docs/benchmarks.md says how."""
