"""Recipe to model: plan, assemble, verify, and the runtime of the hybrid itself."""

if __name__ != "hybridize.assembler":
    raise ImportError("this folder is a part of the package: import hybridize.assembler")
