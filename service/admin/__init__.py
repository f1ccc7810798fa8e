"""The HTTP API for operation below `/admin`, and `/v1/feedback`: thin handlers over the other rooms."""
