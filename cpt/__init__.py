"""Continued pre-training of an assembled model under a freeze policy."""

if __name__ != "hybridize.cpt":
    raise ImportError("this folder is a part of the package: import hybridize.cpt")
