"""TODO."""
HELP = DESCRIPTION = EPILOG = "todo"
def add_arguments(parser): ...
def run(options): return 0
