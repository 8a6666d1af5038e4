"""`python -m lorec`: the command line, for an environment whose scripts are not on the path."""

from lorec.cli import main

if __name__ == "__main__":
    main()
