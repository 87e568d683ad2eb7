"""Where a model does its tasks and how sensitive its layers are."""

if __name__ != "hybridize.diagnostics":
    raise ImportError("this folder is a part of the package: import hybridize.diagnostics")
