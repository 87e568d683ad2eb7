"""The second process of a build, which has torch."""
