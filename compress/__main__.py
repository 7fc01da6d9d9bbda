"""`python -m compress` is `compress`."""

from compress.cli.app import main

if __name__ == "__main__":
    main()
