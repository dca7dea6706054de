"""The command line. One module per command; only this package prints or exits."""
