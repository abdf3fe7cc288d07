"""`python -m convwright`: the command line."""

from convwright.cli import main

if __name__ == "__main__":
    main(prog_name="convwright")
