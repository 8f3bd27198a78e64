"""The console, `python -m ffncore`: a file for each command, which has add_arguments and run."""
