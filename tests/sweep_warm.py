"""One run, done when this is imported: processes forked after it begin a sweep at once."""

import tempfile

from tests.sweep_cases import sweep_seeds

with tempfile.TemporaryDirectory() as folder:
    sweep_seeds(1, folder, {})
