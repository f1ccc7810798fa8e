"""Model in, smaller model out: passes, recipes and the pipeline that runs them.

Knows no HTTP, no store and no clock.
"""
