"""Probe sets that hybridize brings: a file is a set, see `hybridize.diagnostics.subject.items`."""
