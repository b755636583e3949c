"""`python -m armada`: the command line where no script is installed, or a launcher starts it."""

from .cli import main

if __name__ == "__main__":
    main()
