"""`python -m linfb`: the command line."""

from linfb.cli import main

if __name__ == "__main__":
    main()
