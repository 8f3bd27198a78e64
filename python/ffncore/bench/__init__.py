"""`python -m ffncore bench`: the cases, the limits of the machine, the rounds, and the output."""
