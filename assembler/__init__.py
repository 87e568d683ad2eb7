"""Recipe to model: plan, assemble, verify, and the runtime of the hybrid itself."""

if __name__ != "hybridize.assembler":
    raise ImportError("import hybridize.assembler: this folder is a part of the package hybridize")
