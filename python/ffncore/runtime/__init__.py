"""Settings of the whole process: the number of threads and the instruction set."""
