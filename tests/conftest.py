import gc
import os
import pathlib
import tempfile

# Programs here run once, and small: they are compiled without the expensive optimisations and, where the version is known to
# take the flag, by XLA's older emitters, in half the time. Processes that tests start inherit these settings.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # programs carry no tracebacks

import jax

if jax.__version_info__ < (0, 11):  # before a backend starts
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

# A second run of the suite finds its programs compiled.
_cache = pathlib.Path(tempfile.gettempdir()) / f"gfm_jax_tests_{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(_cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_num_cpu_devices", 2)  # before any array: the tests of sharding want two
# Networks of tests are compared to rounding of float32, which a GPU's default is not; of the library see test_precision.
jax.config.update("jax_default_matmul_precision", "highest")

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# What the imports made is never freed: the garbage collector, which tracing calls often, leaves it out.
gc.collect()
gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def programs_are_given_back():
    """A process can hold so many compiled programs, each with maps of memory of its own, that the next compilation crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")  # Linux allows 65,530 of them
    if not maps.exists() or len(maps.read_text().splitlines()) > 20_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def unchecked():
    """Without the types checked, as a user has it: bad input has to be caught by the functions themselves."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def key():
    return jax.random.key(0)
