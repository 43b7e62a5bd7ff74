"""Several devices and machines: what a round may use, how its stages are started there, and what that takes."""
