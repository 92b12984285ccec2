"""Test configuration: runtime shape checks of the array code, on in tests only."""

import importlib.util

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where a float is asked for, an int is one

# The public front validates its arguments itself; these modules hold array code behind it.
install_import_hook(["linfb.rules", "linfb.linear", "linfb.engine", "linfb.observables"], "conftest.checked")

settings.register_profile("linfb", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("linfb")


def pytest_runtest_setup(item):
    """Skip what needs an optional library or device that is absent, and say so."""
    if item.get_closest_marker("oracle") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed (make test-oracle)")
    if item.get_closest_marker("gpu"):  # not by keyword: folders have names too
        if importlib.util.find_spec("cupy") is None:
            pytest.skip("CuPy is not installed")
        import cupy

        if not cupy.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory):
    """All CUDA kernels, compiled for the host."""
    from tests.cuda_on_host import SOURCES, build

    return build(tmp_path_factory.mktemp("kernels"), SOURCES)
