"""Writes what the committed tables say into figures/scorecard.md and the README: `python -m srdyn.study.claims`."""

import os

from srdyn.study.claims import readme
from srdyn.study.run import store

if __name__ == "__main__":
    os.environ.setdefault("SRDYN_RUN", store.REFERENCE)
    readme.publish()
