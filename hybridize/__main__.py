"""`python -m hybridize`."""

from hybridize.cli import main

if __name__ == "__main__":
    main(prog_name="hybridize")
