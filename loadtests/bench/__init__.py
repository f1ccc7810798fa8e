"""The data plane's own speed on a small model, side by side with plain BentoML and bare uvicorn."""
