"""Models as pure functions: adapters, forward passes, precision, and checks of their structure."""
