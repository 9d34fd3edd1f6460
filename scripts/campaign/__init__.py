"""A campaign of kills, disk faults, bad inputs and odd files against the command line; see __main__.py."""
