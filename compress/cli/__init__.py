"""The command line: arguments in, tables or JSON out; imports no tensor library."""
