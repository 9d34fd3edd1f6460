"""`python -m carv3d`."""

from carv3d.cli import main

if __name__ == "__main__":
    main()
