"""These tests need the compilers for GPUs and TPUs: `make test-targets` installs and runs them."""

import importlib.util

if any(importlib.util.find_spec(name) is None for name in ('libtpu', 'jax_cuda13_plugin')):
    collect_ignore_glob = ['test_*.py']
