"""Experiments between variants as pure functions: who gets which arm, what the evidence says, what follows.

No input or output, no clock and no database: time, draws and evidence are arguments. `service.state` keeps
what is described here, and its conductor calls `advance` twice a second.
"""
