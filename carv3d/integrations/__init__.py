"""carv3d inside other frameworks. Nothing of carv3d imports what is here."""
