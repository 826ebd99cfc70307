"""`python -m realtime`: the same as the command `realtime`."""

from realtime.cli import main

if __name__ == "__main__":
    main()
