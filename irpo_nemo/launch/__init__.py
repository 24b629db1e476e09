"""Launchers start stages by command line: here on this machine; other engines stand beside it."""
