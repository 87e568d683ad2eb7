"""Donors that mergekit makes first."""
