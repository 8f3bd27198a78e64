"""Old pickles of every public type, from a version of the package without folders.

old_pickles.bin is a compressed, pickled dict. Its keys are names of cases in support_copying.py,
its values are pickles of what these cases make. A pickle names modules, and these have moved since,
so the file cannot be made again. Tests: test_old_pickles.py.
"""

import pickle
import zlib
from pathlib import Path

FILE = Path(__file__).with_suffix(".bin")

# Larger pickles would only make the file longer.
MOST_BYTES = 24 * 1024


def write():
    from support_copying import ALL

    made = {name: pickle.dumps(case.make(), protocol=4) for name, case in ALL.items()}
    small = {name: data for name, data in made.items() if len(data) <= MOST_BYTES}
    FILE.write_bytes(zlib.compress(pickle.dumps(small, protocol=4), 9))


def read():
    return pickle.loads(zlib.decompress(FILE.read_bytes()))
