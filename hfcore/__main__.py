"""``python -m hfcore`` is the command line."""

from hfcore.cli import main

if __name__ == "__main__":
    main(prog_name="hfcore")
