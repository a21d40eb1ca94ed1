"""Commands: flags are parsed, one library call is made, results are printed.

No logic lives here; nothing imports this package.
"""
