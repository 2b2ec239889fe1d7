"""The version of the package, in one place for the build and the program."""

__version__ = "0.1.0.dev0"
