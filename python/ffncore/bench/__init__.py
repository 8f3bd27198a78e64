"""What `python -m ffncore bench` measures: cases, limits of the machine, rounds, printing."""
