"""Perturbations of a layer: a file is a kind, see `hybridize.diagnostics.measure.variants`."""
