"""The servers beside Mipgate: one file each, as its own documentation shows it, run in its own environment.

`<name>.txt` beside them pins what each environment holds. The bench itself imports `session` only, for what a
direct call costs.
"""
