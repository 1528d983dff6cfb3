"""Measure everything in turn, and print the tables; a full run also writes them into README.md beside this file.

python benchmarks/run.py [--quick] [--only NAME]
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.suite import main

    main()
