"""Tests that need eight devices. `tests/test_several_devices.py` runs them in such a process.

To run them alone: XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest tests/several_devices
"""

import os

NEEDED = '--xla_force_host_platform_device_count=8'

if NEEDED not in os.environ.get('XLA_FLAGS', ''):
    collect_ignore_glob = ['test_*.py']
